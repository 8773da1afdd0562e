//! Where control is and as whom it is asked, as people say it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::{Address, Api, ClientError, Connector};

/// Where control is and as whom to ask it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Control")]
pub(crate) struct Options {
    /// Address of control's API: http://HOST:PORT, https://HOST:PORT or unix:PATH
    #[arg(long, value_name = "URL", env = "POSTERN_API", default_value = "http://127.0.0.1:7480", global = true)]
    api: Address,
    /// File with the token of the principal; the token itself may be in POSTERN_TOKEN
    #[arg(long, value_name = "FILE", env = "POSTERN_TOKEN_FILE", global = true)]
    token_file: Option<PathBuf>,
    /// File with the certificates of the authorities that may vouch for control (PEM)
    #[arg(long, value_name = "FILE", env = "POSTERN_CA", global = true)]
    ca: Option<PathBuf>,
    /// File with the principal's certificate (PEM), instead of a token
    #[arg(long, value_name = "FILE", env = "POSTERN_CERTIFICATE", requires = "key", global = true)]
    certificate: Option<PathBuf>,
    /// File with the key of that certificate (PEM)
    #[arg(long, value_name = "FILE", env = "POSTERN_KEY", requires = "certificate", global = true)]
    key: Option<PathBuf>,
}

impl Options {
    /// The API that they say.
    pub(crate) fn api(&self) -> Result<Api, ClientError> {
        let tls = match &self.api {
            Address::Tcp { tls: true, .. } => Some(Arc::new(self.tls()?)),
            Address::Tcp { .. } | Address::Unix(_) if self.certificate.is_some() => {
                let words = format!("a certificate is shown within TLS only, and {} is without", self.api);
                return Err(ClientError::Usage(words));
            }
            Address::Tcp { .. } | Address::Unix(_) => None,
        };
        Api::new(Connector::new(self.api.clone(), tls), self.token()?)
    }

    /// The token: from the file, or from the environment.
    fn token(&self) -> Result<Option<String>, ClientError> {
        let (token, origin) = match &self.token_file {
            Some(file) => {
                let text = fs::read_to_string(file).map_err(|error| file_error(file, &error))?;
                (text, file.display().to_string())
            }
            None => match std::env::var("POSTERN_TOKEN") {
                Ok(token) => (token, "POSTERN_TOKEN".to_owned()),
                Err(_) => return Ok(None),
            },
        };
        match token.trim() {
            "" => Ok(None),
            token if token.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(Some(token.to_owned())),
            _ => Err(ClientError::Usage(format!("{origin} holds no token: one line of visible ASCII characters"))),
        }
    }

    fn tls(&self) -> Result<ClientConfig, ClientError> {
        let Some(ca) = &self.ca else {
            let words = "https needs --ca FILE: whom to believe that this is control (for a certificate of a public \
                         authority: /etc/ssl/certs/ca-certificates.crt)";
            return Err(ClientError::Usage(words.to_owned()));
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(ca)? {
            roots.add(certificate).map_err(|error| file_error(ca, &error))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| ClientError::Usage(error.to_string()))?
            .with_root_certificates(roots);
        match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => {
                let chain = certificates(certificate)?;
                let private = PrivateKeyDer::from_pem_file(key).map_err(|error| file_error(key, &error))?;
                builder.with_client_auth_cert(chain, private).map_err(|error| file_error(certificate, &error))
            }
            _ => Ok(builder.with_no_client_auth()),
        }
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| file_error(file, &error))?;
    if certificates.is_empty() {
        return Err(ClientError::Usage(format!("{} holds no certificate (PEM)", file.display())));
    }
    Ok(certificates)
}

fn file_error(file: &Path, error: &dyn std::error::Error) -> ClientError {
    ClientError::Usage(format!("cannot use {}: {error}", file.display()))
}
