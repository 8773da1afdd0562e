//! The PROXY protocol header, version 2, that tells a target who is calling (the PROXY protocol, versions 1 and 2, §2.2), with
//! the TLVs by which receivers know the clouds' private links.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::crc32c::crc32c;

/// What every header of version 2 begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const PROXY: u8 = 0x21;
/// Stream sockets of IPv4 and IPv6.
const TCP_V4: u8 = 0x11;
const TCP_V6: u8 = 0x21;
/// Signature, command, family, length.
const FRONT: usize = 16;
/// Both addresses and ports.
const ENDS_V4: usize = 12;
const ENDS_V6: usize = 36;

/// TLVs: the header's checksum, padding, and those of AWS, Google and Azure.
const CRC32C: u8 = 0x03;
const NOOP: u8 = 0x04;
const AWS: u8 = 0xea;
const GOOGLE: u8 = 0xe0;
const AZURE: u8 = 0xee;
/// Of AWS' TLV, the endpoint's id; of Azure's, the link's.
const AWS_ENDPOINT: u8 = 1;
const AZURE_LINK: u8 = 1;
/// Type and length of a TLV.
const TLV: usize = 3;
/// What AWS' TLVs take in all: the header is as long for every endpoint.
const AWS_TLVS: usize = 72;
/// Most bytes of an endpoint's id that fit into them beside the checksum and an empty padding.
const AWS_LONGEST_ID: usize = AWS_TLVS - (TLV + 4) - (TLV + 1) - TLV;

/// Longest header, in bytes.
pub const LONGEST: usize = FRONT + ENDS_V6 + AWS_TLVS;

/// Whose TLVs a header has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dialect {
    /// CRC32C, AWS' endpoint id, padding: 100 bytes for IPv4, 124 for IPv6.
    Aws,
    /// Google's connection id, 64 bits: 39 and 63 bytes.
    Google,
    /// Azure's link id, 32 bits: 36 and 60 bytes.
    Azure,
}

/// Length of a header in bytes.
#[must_use]
pub const fn length(dialect: Dialect, ipv6: bool) -> usize {
    let front = FRONT + if ipv6 { ENDS_V6 } else { ENDS_V4 };
    front
        + match dialect {
            Dialect::Aws => AWS_TLVS,
            Dialect::Google => TLV + 8,
            Dialect::Azure => TLV + 1 + 4,
        }
}

/// Writes the header of a connection from `client` to `endpoint` and returns its length.
///
/// The family is IPv6 if either end is; an IPv4 end is mapped then (RFC 4291 §2.5.5.2). Of an endpoint's id, AWS' TLV has the
/// first 58 bytes; see [`connection_id`] for the others.
#[must_use]
pub fn write(
    out: &mut [u8; LONGEST],
    dialect: Dialect,
    client: SocketAddr,
    endpoint: SocketAddr,
    endpoint_id: &str,
) -> usize {
    let ends = (client.ip(), endpoint.ip());
    let ipv6 = !matches!(ends, (IpAddr::V4(_), IpAddr::V4(_)));
    let length = length(dialect, ipv6);
    let mut writer = Writer { out, at: 0 };
    writer.put(&SIGNATURE);
    writer.put(&[PROXY, if ipv6 { TCP_V6 } else { TCP_V4 }]);
    writer.put(&((length - FRONT) as u16).to_be_bytes());
    match ends {
        (IpAddr::V4(client), IpAddr::V4(endpoint)) => {
            writer.put(&client.octets());
            writer.put(&endpoint.octets());
        }
        (client, endpoint) => {
            writer.put(&mapped(client).octets());
            writer.put(&mapped(endpoint).octets());
        }
    }
    writer.put(&client.port().to_be_bytes());
    writer.put(&endpoint.port().to_be_bytes());
    match dialect {
        Dialect::Aws => {
            let id = &endpoint_id.as_bytes()[..endpoint_id.len().min(AWS_LONGEST_ID)];
            writer.tlv(CRC32C, &[&[0; 4]]);
            let checksum_at = writer.at - 4;
            writer.tlv(AWS, &[&[AWS_ENDPOINT], id]);
            writer.tlv(NOOP, &[&[0; AWS_LONGEST_ID][id.len()..]]);
            let checksum = crc32c(&writer.out[..length]);
            writer.out[checksum_at..checksum_at + 4].copy_from_slice(&checksum.to_be_bytes());
        }
        Dialect::Google => writer.tlv(GOOGLE, &[&connection_id(endpoint_id).to_be_bytes()]),
        Dialect::Azure => writer.tlv(AZURE, &[&[AZURE_LINK], &(connection_id(endpoint_id) as u32).to_le_bytes()]),
    }
    length
}

/// The number by which Google's and (its low 32 bits) Azure's TLV name an endpoint: the last 16 hexadecimal digits of its id,
/// or of an id that does not end in so many, the FNV-1a hash (64 bits) of the whole.
#[must_use]
pub fn connection_id(endpoint_id: &str) -> u64 {
    let digits = endpoint_id.len().checked_sub(16).and_then(|at| endpoint_id.get(at..));
    let number = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
    number.and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or_else(|| {
        endpoint_id
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    })
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

struct Writer<'o> {
    out: &'o mut [u8; LONGEST],
    at: usize,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    fn tlv(&mut self, kind: u8, value: &[&[u8]]) {
        let length: usize = value.iter().map(|part| part.len()).sum();
        self.put(&[kind]);
        self.put(&(length as u16).to_be_bytes());
        value.iter().for_each(|part| self.put(part));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "vpce-08d2bf15fac5001c9";

    fn header(dialect: Dialect, client: &str, endpoint: &str, id: &str) -> Vec<u8> {
        let mut out = [0xaa; LONGEST];
        let length = write(&mut out, dialect, client.parse().unwrap(), endpoint.parse().unwrap(), id);
        out[..length].to_vec()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What is behind the length field and the ends, checked for consistency with the length field.
    fn tlvs(header: &[u8], ends: usize) -> Vec<(u8, Vec<u8>)> {
        assert_eq!(usize::from(u16::from_be_bytes([header[14], header[15]])) + 16, header.len());
        let mut rest = &header[16 + ends..];
        let mut found = Vec::new();
        while let [kind, high, low, behind @ ..] = rest {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            found.push((*kind, behind[..length].to_vec()));
            rest = &behind[length..];
        }
        assert!(rest.is_empty());
        found
    }

    #[test]
    fn the_proxy_protocol_header_of_aws_over_ipv4_is_these_hundred_bytes() {
        let header = header(Dialect::Aws, "10.0.0.2:51234", "10.0.0.100:443", ID);
        let mut wanted = "0d0a0d0a000d0a515549540a".to_owned() // signature
            + "21110054" // version 2, PROXY; TCP over IPv4; 84 bytes follow
            + "0a0000020a000064c82201bb"
            + "030004";
        let checksum = hex(&header[31..35]);
        wanted += &checksum;
        wanted += "ea001701";
        wanted += &hex(ID.as_bytes());
        wanted += "040024";
        wanted += &"00".repeat(36);
        assert_eq!((header.len(), hex(&header)), (100, wanted));
        // Over the whole header, with its own field zero.
        let mut zeroed = header.clone();
        zeroed[31..35].fill(0);
        assert_eq!(header[31..35], crc32c(&zeroed).to_be_bytes());
        assert_eq!(checksum, "2b8f07f6", "an independent implementation's");
    }

    #[test]
    fn the_proxy_protocol_header_of_aws_over_ipv6_has_the_same_tlvs_and_124_bytes() {
        let six = header(Dialect::Aws, "[2001:db8::2]:51234", "[2001:db8::64]:443", ID);
        assert_eq!((six.len(), six[13], six[15]), (124, 0x21, 108));
        assert_eq!(hex(&six[16..52]), "20010db800000000000000000000000220010db8000000000000000000000064c82201bb");
        let tlvs = tlvs(&six, 36);
        assert_eq!(
            tlvs.iter().map(|(kind, value)| (*kind, value.len())).collect::<Vec<_>>(),
            [(3, 4), (0xea, 23), (4, 36)]
        );
        assert_eq!(tlvs[1].1[1..], *ID.as_bytes());
        // An IPv4 endpoint of an IPv6 client, and the other way, is mapped.
        let mixed = header(Dialect::Aws, "[2001:db8::2]:1", "10.0.0.100:2", ID);
        assert_eq!(hex(&mixed[32..48]), "00000000000000000000ffff0a000064");
    }

    #[test]
    fn every_endpoint_id_gives_a_header_of_the_same_length() {
        for id in ["vpce-a", ID, &"x".repeat(58), &"y".repeat(128), ""] {
            let header = header(Dialect::Aws, "10.0.0.2:51234", "10.0.0.100:443", id);
            assert_eq!(header.len(), 100);
            let shown = &id[..id.len().min(58)];
            let tlvs = tlvs(&header, 12);
            assert_eq!(tlvs[1].1, [&[1], shown.as_bytes()].concat());
            assert_eq!(tlvs[2], (4, vec![0; 58 - shown.len()]));
        }
    }

    #[test]
    fn the_proxy_protocol_headers_of_google_and_azure_carry_the_endpoints_number() {
        let google = header(Dialect::Google, "10.0.0.2:51234", "10.0.0.100:443", ID);
        assert_eq!(
            (google.len(), tlvs(&google, 12)),
            (39, vec![(0xe0, 0x8d2b_f15f_ac50_01c9u64.to_be_bytes().to_vec())])
        );
        let azure = header(Dialect::Azure, "10.0.0.2:51234", "10.0.0.100:443", ID);
        assert_eq!((azure.len(), tlvs(&azure, 12)), (36, vec![(0xee, vec![1, 0xc9, 0x01, 0x50, 0xac])]));
        assert_eq!(header(Dialect::Google, "[::2]:1", "[::3]:2", ID).len(), length(Dialect::Google, true));
        assert_eq!(header(Dialect::Azure, "[::2]:1", "[::3]:2", ID).len(), length(Dialect::Azure, true));
        // FNV-1a of "a", as its authors publish it.
        assert_eq!(connection_id("a"), 0xaf63_dc4c_8601_ec8c);
    }
}
