//! A connection to control: credentials read from their files, TLS, keepalive.

use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postern_push::MESSAGE_BYTES;
use postern_push::proto::push_client::PushClient;
use postern_tables::check::ControlSettings;
use tonic::Status;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

/// How long connecting may take, TLS included.
const CONNECT: Duration = Duration::from_secs(10);
/// Control is asked for a sign of life so often.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// It is taken for gone when it has not answered for so long.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// A file with credentials cannot be read.
    #[error("cannot read {key} {path}: {source}")]
    Read {
        /// The key that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The token cannot be sent.
    #[error("control.token_file {0} does not have a token: one line of printable ASCII is needed")]
    Token(PathBuf),
    /// Certificates or key make no sense.
    #[error("cannot use the certificates of [control]: {0}")]
    Tls(String),
    /// Nobody answers, or not as control does.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The two do not trust each other, or one speaks no TLS.
    #[error("cannot connect: {hint} ({cause})")]
    Trust {
        /// What is to be looked at.
        hint: &'static str,
        /// What the transport said.
        cause: String,
    },
}

/// An open connection, and what is to be shown with each call.
pub(super) struct Connection {
    pub(super) client: PushClient<Channel>,
    /// `Bearer …`
    pub(super) token: Option<MetadataValue<Ascii>>,
}

/// Connects with the credentials that the files have now.
pub(super) async fn connect(settings: &ControlSettings) -> Result<Connection, ConnectionError> {
    let credentials = &settings.credentials;
    let token = credentials.token.as_deref().map(token).transpose()?;
    let address = &settings.address;
    let endpoint =
        Endpoint::from_shared(address.to_string()).map_err(|error| ConnectionError::Connect(chain(&error)))?;
    let mut endpoint = endpoint
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    if address.encrypted {
        let mut tls = ClientTlsConfig::new().domain_name(&address.host);
        if let Some(ca) = &credentials.ca {
            tls = tls.ca_certificate(Certificate::from_pem(read("control.ca", ca)?));
        }
        if let Some((certificate, key)) = &credentials.identity {
            tls =
                tls.identity(Identity::from_pem(read("control.certificate", certificate)?, read("control.key", key)?));
        }
        endpoint = endpoint.tls_config(tls).map_err(|error| ConnectionError::Tls(chain(&error)))?;
    }
    let connecting = tokio::time::timeout(CONNECT, endpoint.connect()).await;
    let late = |_| ConnectionError::Connect(format!("no answer within {} s", CONNECT.as_secs()));
    let channel = connecting.map_err(late)?.map_err(|error| refused(&error))?;
    let client =
        PushClient::new(channel).max_decoding_message_size(MESSAGE_BYTES).max_encoding_message_size(MESSAGE_BYTES);
    Ok(Connection { client, token })
}

/// Why there is no connection, with what to look at where certificates are the reason.
fn refused(error: &(dyn Error + 'static)) -> ConnectionError {
    let cause = chain(error);
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let inner: Option<&(dyn Error + 'static)> = inner.map(|inner| inner as _);
        if let Some(hint) = inner.or(Some(error)).and_then(|error| error.downcast_ref()).and_then(tls_hint) {
            return ConnectionError::Trust { hint, cause };
        }
        next = error.source();
    }
    ConnectionError::Connect(cause)
}

/// What an error of TLS means to an operator.
fn tls_hint(error: &rustls::Error) -> Option<&'static str> {
    match error {
        rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer) => {
            Some("no authority in control.ca has signed control's certificate")
        }
        rustls::Error::InvalidCertificate(_) => Some("control's certificate is not good for control.address"),
        rustls::Error::InvalidMessage(_) => Some("what listens there speaks no TLS"),
        rustls::Error::AlertReceived(_) => Some(NOT_BELIEVED),
        _ => None,
    }
}

/// Control's answer to a certificate that none of its authorities has signed, or that is not valid now.
const NOT_BELIEVED: &str = "control does not believe this gateway's certificate (control.certificate)";

/// What a broken stream says, with what to look at where the certificate is the reason: within TLS 1.3 a client hears that
/// only after its handshake (RFC 8446, section 4.4.2.4), and the transport keeps no more than the text.
pub(super) fn broken(status: &Status) -> String {
    let causes = status.source().map(chain).filter(|causes| !status.message().contains(causes));
    let text = match (status.message(), causes) {
        ("", None) => chain(status),
        ("", Some(causes)) => causes,
        (message, None) => message.to_owned(),
        (message, Some(causes)) => format!("{message}: {causes}"),
    };
    if text.contains("received fatal alert") { format!("{NOT_BELIEVED} ({text})") } else { text }
}

/// What an error and those behind it say. The transport's own texts name no cause.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            let _ = write!(text, ": {said}");
        }
        next = cause.source();
    }
    text
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, ConnectionError> {
    fs::read(path).map_err(|source| ConnectionError::Read { key, path: path.to_owned(), source })
}

fn token(path: &Path) -> Result<MetadataValue<Ascii>, ConnectionError> {
    let bytes = read("control.token_file", path)?;
    let malformed = || ConnectionError::Token(path.to_owned());
    let text = str::from_utf8(&bytes).map_err(|_| malformed())?.trim();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(malformed());
    }
    let mut value = MetadataValue::try_from(format!("Bearer {text}")).map_err(|_| malformed())?;
    value.set_sensitive(true);
    Ok(value)
}
