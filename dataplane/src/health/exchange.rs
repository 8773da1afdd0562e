//! What is said on a probe's connection, whatever carries it: nothing, or an HTTP request and the first line of its
//! answer, in the clear or within TLS. Bytes go in and come out; nothing here waits.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use postern_tables::health::{Matcher, Question};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};

/// Longest status line, in bytes.
const LONGEST_LINE: usize = 1024;
/// Most bytes of a TLS handshake and answer that are read for one probe.
const MOST_BYTES: usize = 128 * 1024;

/// How a probe ended.
pub(super) type Outcome = Result<(), Failure>;

/// Why a probe did not pass.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The target refused or reset the connection.
    #[error("the connection was refused or reset")]
    Reset,
    /// Time was over.
    #[error("no answer within {0} seconds")]
    Timeout(u16),
    /// It closed the connection too early.
    #[error("the connection was closed before the answer")]
    Closed,
    /// The status did not pass.
    #[error("HTTP status {0}")]
    Status(u16),
    /// The answer is not HTTP/1.
    #[error("the answer is not HTTP/1")]
    NotHttp,
    /// TLS failed.
    #[error("TLS: {0}")]
    Tls(String),
}

/// One exchange.
#[derive(Debug)]
pub(super) enum Exchange {
    /// A handshake was all.
    Connect,
    /// A request and the beginning of its answer.
    Get(Get),
}

/// An HTTP exchange.
#[derive(Debug)]
pub(super) struct Get {
    tls: Option<Box<ClientConnection>>,
    matcher: Matcher,
    /// What is still to be sent, in the clear.
    request: Vec<u8>,
    sent: usize,
    /// The answer's first line as far as it came.
    line: Vec<u8>,
    /// Bytes received.
    received: usize,
}

/// The TLS client of all probes. Certificates are not verified: targets are named by address, and what a probe is to
/// find out is whether they answer.
#[derive(Clone, Debug)]
pub(super) struct Tls(Arc<ClientConfig>);

impl Tls {
    /// A client for TLS 1.2 and 1.3.
    pub(super) fn new() -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }
}

impl Exchange {
    /// The exchange that answers a question.
    pub(super) fn new(question: &Question, target: SocketAddr, tls: &Tls) -> Result<Self, Failure> {
        let Question::Get { tls: within_tls, path, matcher } = question else {
            return Ok(Self::Connect);
        };
        let name = ServerName::from(target.ip());
        let client = within_tls.then(|| ClientConnection::new(tls.0.clone(), name).map(Box::new)).transpose();
        Ok(Self::Get(Get {
            tls: client.map_err(|error| Failure::Tls(error.to_string()))?,
            matcher: matcher.clone(),
            request: format!(
                "GET {path} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: Postern-HealthCheck/1\r\nAccept: */*\r\n\
                 Connection: close\r\n\r\n"
            )
            .into_bytes(),
            sent: 0,
            line: Vec::new(),
            received: 0,
        }))
    }

    /// Whether the handshake alone answers the question.
    pub(super) const fn is_connect(&self) -> bool {
        matches!(self, Self::Connect)
    }

    /// Writes as many bytes as there is room for; returns how many.
    pub(super) fn write(&mut self, room: &mut [u8]) -> Result<usize, Failure> {
        let Self::Get(get) = self else { return Ok(0) };
        let Some(tls) = &mut get.tls else {
            let rest = &get.request[get.sent..];
            let count = rest.len().min(room.len());
            room[..count].copy_from_slice(&rest[..count]);
            get.sent += count;
            return Ok(count);
        };
        if !tls.is_handshaking() && get.sent < get.request.len() {
            let written = tls.writer().write(&get.request[get.sent..]);
            get.sent += written.map_err(|error| Failure::Tls(error.to_string()))?;
        }
        let mut rest = room;
        let before = rest.len();
        while tls.wants_write() && !rest.is_empty() {
            tls.write_tls(&mut rest).map_err(|error| Failure::Tls(error.to_string()))?;
        }
        Ok(before - rest.len())
    }

    /// Takes received bytes; `Some` when the question is answered.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Option<Outcome> {
        let Self::Get(get) = self else { return None };
        get.received += bytes.len();
        if get.received > MOST_BYTES {
            return Some(Err(Failure::NotHttp));
        }
        let Some(tls) = &mut get.tls else {
            get.line.extend_from_slice(&bytes[..bytes.len().min(LONGEST_LINE)]);
            return get.judge();
        };
        while !bytes.is_empty() {
            let state = match tls.read_tls(&mut bytes) {
                Ok(_) => tls.process_new_packets(),
                Err(error) => return Some(Err(Failure::Tls(error.to_string()))),
            };
            let plain = match state {
                Ok(state) => state.plaintext_bytes_to_read(),
                Err(error) => return Some(Err(Failure::Tls(error.to_string()))),
            };
            let mut text = vec![0; plain.min(LONGEST_LINE)];
            // What was said to be there is there.
            let count = tls.reader().read(&mut text).unwrap_or(0);
            get.line.extend_from_slice(&text[..count]);
            if get.line.contains(&b'\n') || get.line.len() > LONGEST_LINE {
                break;
            }
        }
        get.judge()
    }
}

impl Get {
    /// Judges the first line of the answer, if it is whole (RFC 9112 §4).
    fn judge(&self) -> Option<Outcome> {
        let Some(end) = self.line.iter().position(|byte| *byte == b'\n') else {
            let hopeless = self.line.len() > LONGEST_LINE || !is_beginning(&self.line);
            return hopeless.then_some(Err(Failure::NotHttp));
        };
        Some(match status(&self.line[..end]) {
            None => Err(Failure::NotHttp),
            Some(status) if self.matcher.passes(status) => Ok(()),
            Some(status) => Err(Failure::Status(status)),
        })
    }
}

/// Whether a line can still become a status line.
fn is_beginning(line: &[u8]) -> bool {
    let version = b"HTTP/1.";
    let count = line.len().min(version.len());
    line[..count] == version[..count]
}

/// The code of `HTTP/1.1 200 OK`.
fn status(line: &[u8]) -> Option<u16> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let rest = line.strip_prefix(b"HTTP/1.")?;
    let [minor, b' ', code @ ..] = rest else { return None };
    let (code, rest) = code.split_at_checked(3)?;
    let whole = minor.is_ascii_digit() && code.iter().all(u8::is_ascii_digit) && matches!(rest, [] | [b' ', ..]);
    whole.then(|| code.iter().fold(0, |number, digit| number * 10 + u16::from(digit - b'0')))
}

/// Takes every certificate, but has the handshake's signatures checked.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The target whose probe it is, for tests.
#[cfg(test)]
pub(super) const TARGET: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 0, 77)), 8080);

#[cfg(test)]
mod tests {
    use super::*;

    fn get(tls: bool) -> Exchange {
        let matcher = Matcher::parse("200-299").unwrap();
        Exchange::new(&Question::Get { tls, path: "/up?x=1".to_owned(), matcher }, TARGET, &Tls::new().unwrap())
            .unwrap()
    }

    #[test]
    fn a_request_names_path_and_target_and_asks_to_close_however_small_the_room() {
        let mut exchange = get(false);
        let mut request = Vec::new();
        let mut room = [0; 7];
        loop {
            match exchange.write(&mut room).unwrap() {
                0 => break,
                count => request.extend_from_slice(&room[..count]),
            }
        }
        let request = String::from_utf8(request).unwrap();
        assert!(request.starts_with("GET /up?x=1 HTTP/1.1\r\nHost: 10.9.0.77:8080\r\n"), "{request}");
        assert!(request.ends_with("Connection: close\r\n\r\n"), "{request}");
    }

    #[test]
    fn the_status_line_decides_as_soon_as_it_is_whole() {
        let cases: &[(&str, Option<Outcome>)] = &[
            ("HTTP/1.1 200 OK\r\n", Some(Ok(()))),
            ("HTTP/1.0 204\n", Some(Ok(()))),
            ("HTTP/1.1 299 Odd reason\r\nmore", Some(Ok(()))),
            ("HTTP/1.1 301 Moved\r\n", Some(Err(Failure::Status(301)))),
            ("HTTP/1.1 503 \r\n", Some(Err(Failure::Status(503)))),
            ("HTTP/1.1 200 OK", None),
            ("HTT", None),
            ("HTTP/2 200\r\n", Some(Err(Failure::NotHttp))),
            ("HTTP/1.1 20\r\n", Some(Err(Failure::NotHttp))),
            ("HTTP/1.1 2000 OK\r\n", Some(Err(Failure::NotHttp))),
            ("HTTP/1.x 200 OK\r\n", Some(Err(Failure::NotHttp))),
            ("SSH-2.0-OpenSSH", Some(Err(Failure::NotHttp))),
            ("\r\n", Some(Err(Failure::NotHttp))),
        ];
        for (answer, expected) in cases {
            assert_eq!(get(false).read(answer.as_bytes()), *expected, "{answer:?}");
            // The same byte by byte.
            let mut exchange = get(false);
            let outcome = answer.bytes().find_map(|byte| exchange.read(&[byte]));
            assert_eq!(outcome, *expected, "{answer:?} in single bytes");
        }
        let endless = [b"HTTP/1.1 200 ".as_slice(), &[b'x'; 4096]].concat();
        let mut exchange = get(false);
        let outcome = endless.chunks(100).find_map(|chunk| exchange.read(chunk));
        assert_eq!(outcome, Some(Err(Failure::NotHttp)));
    }

    /// A TLS server with a certificate that it signed itself, which answers with `answer`.
    fn tls_server() -> rustls::ServerConnection {
        let certified = rcgen::generate_simple_self_signed(vec!["example.test".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
        let config = rustls::ServerConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key.into())
            .unwrap();
        rustls::ServerConnection::new(Arc::new(config)).unwrap()
    }

    #[test]
    fn a_self_signed_certificate_does_not_stand_in_the_way_of_a_status() {
        for (answer, expected) in
            [("HTTP/1.1 200 OK\r\n\r\n", Ok(())), ("HTTP/1.1 404 Not Found\r\n\r\n", Err(Failure::Status(404)))]
        {
            let (mut exchange, mut server) = (get(true), tls_server());
            let mut outcome = None;
            // A handshake has a few flights.
            for _ in 0..20 {
                let mut room = [0; 700];
                let count = exchange.write(&mut room).unwrap();
                let mut sent = &room[..count];
                while !sent.is_empty() {
                    server.read_tls(&mut sent).unwrap();
                    server.process_new_packets().unwrap();
                }
                let mut request = [0; 2048];
                if server.reader().read(&mut request).is_ok_and(|count| count > 0) {
                    server.writer().write_all(answer.as_bytes()).unwrap();
                }
                let mut reply = Vec::new();
                while server.wants_write() {
                    server.write_tls(&mut reply).unwrap();
                }
                outcome = outcome.or_else(|| reply.chunks(97).find_map(|chunk| exchange.read(chunk)));
            }
            assert_eq!(outcome, Some(expected));
        }
    }

    #[test]
    fn what_is_not_tls_fails_with_the_reason() {
        let outcome = get(true).read(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        assert!(matches!(outcome, Some(Err(Failure::Tls(_)))), "{outcome:?}");
    }
}
