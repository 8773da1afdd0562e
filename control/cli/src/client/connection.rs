//! How a request reaches an API and its answer comes back.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{StatusCode, http};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ClientConfig};

use super::{Address, Request};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an answer may take: longer than any that the API holds back on purpose.
const ANSWER: Duration = Duration::from_secs(90);
/// Largest answer that is read, in bytes.
const LARGEST: usize = 256 << 20;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Makes connections to one address.
#[derive(Debug, Clone)]
pub(crate) struct Connector {
    address: Address,
    tls: Option<Arc<ClientConfig>>,
}

impl Connector {
    /// Connections to `address`; with TLS they need `tls`.
    pub(crate) const fn new(address: Address, tls: Option<Arc<ClientConfig>>) -> Self {
        Self { address, tls }
    }

    pub(super) const fn address(&self) -> &Address {
        &self.address
    }

    /// Sends a request; returns status and body of the answer, or why there is none.
    pub(super) async fn exchange(
        &self,
        request: &Request,
        token: Option<&str>,
    ) -> Result<(StatusCode, String), String> {
        let request = self.message(request, token)?;
        let stream = match timeout(CONNECT, self.connect()).await {
            Ok(stream) => stream?,
            Err(_) => return Err(format!("no connection within {} s", CONNECT.as_secs())),
        };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(reason)?;
        let carrying = tokio::spawn(connection);
        let answer = timeout(ANSWER, async {
            let answer = sender.send_request(request).await.map_err(reason)?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), LARGEST).collect().await.map_err(reason)?;
            let body = String::from_utf8(body.to_bytes().into()).map_err(|_| "its answer is not text".to_owned())?;
            Ok((status, body))
        });
        let answer = answer.await.unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER.as_secs())));
        carrying.abort();
        answer
    }

    fn message(&self, request: &Request, token: Option<&str>) -> Result<http::Request<Full<Bytes>>, String> {
        let mut message = http::Request::builder()
            .method(&request.method)
            .uri(&request.path)
            .header("host", self.address.authority())
            .header("user-agent", concat!("postern/", env!("CARGO_PKG_VERSION")))
            .header("accept", "application/json");
        if let Some(token) = token {
            message = message.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in &request.headers {
            message = message.header(*name, value);
        }
        let body = request.body.as_ref().map(|body| body.to_string().into_bytes());
        if body.is_some() {
            message = message.header("content-type", "application/json");
        }
        message
            .body(Full::from(body.unwrap_or_default()))
            .map_err(|error| format!("the request cannot be written: {error}"))
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, String> {
        let (tls, host, port) = match &self.address {
            Address::Unix(path) => return Ok(Box::new(UnixStream::connect(path).await.map_err(reason)?)),
            Address::Tcp { tls, host, port } => (*tls, host, *port),
        };
        let stream = TcpStream::connect((host.as_str(), port)).await.map_err(reason)?;
        stream.set_nodelay(true).map_err(reason)?;
        if !tls {
            return Ok(Box::new(stream));
        }
        let tls = self.tls.clone().ok_or("TLS is not set up")?;
        let name = ServerName::try_from(host.clone()).map_err(reason)?;
        Ok(Box::new(TlsConnector::from(tls).connect(name, stream).await.map_err(reason)?))
    }
}

/// An error with what caused it, and what to look at where TLS is the reason.
fn reason(error: impl Into<Box<dyn Error + Send + Sync>>) -> String {
    let error = error.into();
    let mut text = error.to_string();
    let mut hint = tls_hint(&*error);
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        hint = hint.or_else(|| tls_hint(error));
        cause = error.source();
    }
    match hint {
        Some(hint) => format!("{hint} ({text})"),
        None => text,
    }
}

/// What an error of TLS means to who typed the command.
fn tls_hint(error: &(dyn Error + 'static)) -> Option<&'static str> {
    match error.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer) => {
            Some("no authority in --ca has signed control's certificate")
        }
        rustls::Error::InvalidMessage(_) => Some("what listens there speaks no TLS"),
        rustls::Error::AlertReceived(_) => Some("control does not believe the certificate of --certificate"),
        _ => None,
    }
}
