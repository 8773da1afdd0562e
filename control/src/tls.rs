//! TLS of the listeners, and the names in client certificates.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::settings::TransportSettings;

/// Why a listener cannot have TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("cannot read {what} {path}: {source}")]
    File {
        /// What it is to have.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: pem::Error,
    },
    /// A file without a certificate.
    #[error("there is no certificate in {path}")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Certificate and key cannot be used.
    #[error("certificate {certificate} with key {key} cannot be used: {source}")]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
    /// The authorities cannot be used.
    #[error("the client authorities in {path} cannot be used: {reason}")]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

/// TLS of a listener. Its certificates can be exchanged while it is served: connections that are open keep those that they
/// began with.
#[derive(Clone, Debug)]
pub struct ListenerTls {
    current: Arc<RwLock<Arc<ServerConfig>>>,
    transport: TransportSettings,
    protocols: &'static [&'static [u8]],
}

impl ListenerTls {
    /// Reads the files that the settings name; `None` where they name no certificate. `protocols`: what clients may speak
    /// within TLS, as ALPN names it.
    ///
    /// Clients may come without a certificate; one that they show must be signed by an authority of `client_ca`.
    ///
    /// # Errors
    /// When a file cannot be read or used.
    pub fn read(transport: &TransportSettings, protocols: &'static [&'static [u8]]) -> Result<Option<Self>, TlsError> {
        let config = server_config(transport, protocols)?;
        let tls = |config| Self { current: Arc::new(RwLock::new(config)), transport: transport.clone(), protocols };
        Ok(config.map(tls))
    }

    /// Reads the files of all these listeners once more, for connections from now on.
    ///
    /// # Errors
    /// When a file cannot be read or used: what was read before stays, for all of them.
    pub fn reload(listeners: &[Self]) -> Result<(), TlsError> {
        let configs: Vec<_> =
            listeners.iter().map(|tls| server_config(&tls.transport, tls.protocols)).collect::<Result<_, _>>()?;
        for (tls, config) in listeners.iter().zip(configs.into_iter().flatten()) {
            *tls.current.write().unwrap_or_else(PoisonError::into_inner) = config;
        }
        Ok(())
    }

    /// What secures the next connection.
    #[must_use]
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// First byte of a TLS connection: a handshake record (RFC 8446, section 5.1).
const HANDSHAKE_RECORD: u8 = 22;

/// Whether who connects begins as TLS does. Waits for the first byte, and leaves it where it is.
///
/// # Errors
/// When the connection fails, or ends before it.
pub(crate) async fn begins_as_tls(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    match stream.peek(&mut first).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(first[0] == HANDSHAKE_RECORD),
    }
}

/// A TLS connection over this one. Who is refused hears why.
///
/// # Errors
/// When the handshake fails. Ends only after the other side has closed, or said more than 64 KiB: who calls bounds the time.
pub(crate) async fn accept(tls: &ListenerTls, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    match tls.acceptor().accept(stream).into_fallible().await {
        Ok(stream) => Ok(stream),
        Err((error, mut stream)) => {
            // The alert says why.
            stream.shutdown().await?;
            read_out(&mut stream).await?;
            Err(error)
        }
    }
}

/// Reads and forgets what the other sends, to its end or up to 64 KiB. A reset, which what it has sent would cause if nobody
/// read it, would take away the last word that it was told.
pub(crate) async fn read_out(stream: &mut TcpStream) -> io::Result<()> {
    let mut rest = [0; 1024];
    for _ in 0..64 {
        if stream.read(&mut rest).await? == 0 {
            break;
        }
    }
    Ok(())
}

/// What a listener with these settings needs; `None` where they name no certificate.
fn server_config(transport: &TransportSettings, protocols: &[&[u8]]) -> Result<Option<Arc<ServerConfig>>, TlsError> {
    let (Some(certificate), Some(key)) = (&transport.certificate, &transport.key) else {
        return Ok(None);
    };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let pair = |source| TlsError::Pair { certificate: certificate.clone(), key: key.clone(), source };
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = builder.map_err(pair)?;
    let builder = match &transport.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let refused = |reason: String| TlsError::Authorities { path: path.clone(), reason };
            let mut authorities = RootCertStore::empty();
            for authority in certificates(path)? {
                authorities.add(authority).map_err(|error| refused(error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider);
            let verifier = verifier.allow_unauthenticated().build().map_err(|error| refused(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let private = PrivateKeyDer::from_pem_file(key).map_err(|source| TlsError::File {
        what: "the private key",
        path: key.clone(),
        source,
    })?;
    let mut config = builder.with_single_cert(certificates(certificate)?, private).map_err(pair)?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Some(Arc::new(config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let error = |source| TlsError::File { what: "certificates", path: path.to_owned(), source };
    let chain = CertificateDer::pem_file_iter(path).map_err(error)?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(error)?;
    if chain.is_empty() {
        return Err(TlsError::Empty { path: path.to_owned() });
    }
    Ok(chain)
}

/// Whom a client certificate stands for: its common name, or, where it has none, its only DNS name. `None` where that is
/// not one name. It says nothing about whether the certificate is to be believed.
#[must_use]
pub fn certificate_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    let mut names = common_names(certificate.subject())?;
    if names.is_empty() {
        names = certificate.valid_dns_names().map(str::to_owned).collect();
    }
    (names.len() == 1).then(|| names.remove(0))
}

/// Tags of DER (ITU-T X.690).
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_IDENTIFIER: u8 = 0x06;
/// UTF8String, PrintableString, IA5String.
const STRINGS: [u8; 3] = [0x0c, 0x13, 0x16];
/// 2.5.4.3, id-at-commonName (RFC 5280, appendix A.1).
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// Common names of a subject, whose outer SEQUENCE may be left out. `None`: not DER.
fn common_names(subject: &[u8]) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut rest = match element(subject) {
        Some((SEQUENCE, content, _)) => content,
        _ => subject,
    };
    while !rest.is_empty() {
        let (SET, mut attributes, after) = element(rest)? else { return None };
        rest = after;
        while !attributes.is_empty() {
            let (SEQUENCE, attribute, after) = element(attributes)? else { return None };
            attributes = after;
            let (OBJECT_IDENTIFIER, kind, value) = element(attribute)? else { return None };
            let (tag, value, _) = element(value)?;
            if kind == COMMON_NAME && STRINGS.contains(&tag) {
                names.push(str::from_utf8(value).ok()?.to_owned());
            }
        }
    }
    Some(names)
}

/// Tag and content of the first element, and what follows it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        // The long form: so many bytes of length.
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    fn certificate(common_names: &[&str], dns_names: &[&str]) -> CertificateDer<'static> {
        let names: Vec<_> = dns_names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = CertificateParams::new(names).unwrap();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.distinguished_name.push(DnType::OrganizationName, "a".repeat(200));
        for name in common_names {
            parameters.distinguished_name.push(DnType::CommonName, *name);
        }
        parameters.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn a_certificate_stands_for_its_common_name_or_its_only_dns_name() {
        assert_eq!(certificate_name(&certificate(&["shop"], &["other"])).as_deref(), Some("shop"));
        assert_eq!(certificate_name(&certificate(&[], &["shop"])).as_deref(), Some("shop"));
        assert_eq!(certificate_name(&certificate(&[], &["shop", "bank"])), None);
        assert_eq!(certificate_name(&certificate(&[], &[])), None);
    }

    #[test]
    fn a_certificate_that_is_cut_short_or_flipped_anywhere_stands_for_nobody_else_and_panics_nowhere() {
        let whole = certificate(&["shop"], &[]);
        for length in 0..whole.len() {
            assert_eq!(certificate_name(&CertificateDer::from(whole[..length].to_vec())), None);
        }
        let subject = webpki::EndEntityCert::try_from(&whole).unwrap().subject().to_vec();
        for at in 0..subject.len() {
            for bit in 0..8 {
                let mut flipped = subject.clone();
                flipped[at] ^= 1 << bit;
                let _ = common_names(&flipped);
                let _ = common_names(&flipped[at..]);
            }
        }
    }

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let directory = std::env::temp_dir().join(format!("postern-tls-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let (pem, key) = (directory.join("a.pem"), directory.join("a.key"));
        let transport =
            TransportSettings { certificate: Some(pem.clone()), key: Some(key.clone()), ..Default::default() };
        let error = || server_config(&transport, &[]).unwrap_err().to_string();
        assert!(error().contains("a.key"), "{}", error());
        let ours = KeyPair::generate().unwrap();
        std::fs::write(&key, ours.serialize_pem()).unwrap();
        assert!(error().contains("a.pem"), "{}", error());
        std::fs::write(&pem, "nothing").unwrap();
        assert!(error().contains("no certificate in"), "{}", error());
        let other = CertificateParams::new(vec!["a".into()]).unwrap().self_signed(&KeyPair::generate().unwrap());
        std::fs::write(&pem, other.unwrap().pem()).unwrap();
        assert!(error().contains("cannot be used"), "{}", error());
        std::fs::remove_dir_all(directory).unwrap();
    }
}
