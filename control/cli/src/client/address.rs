//! Where an API is.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use hyper::http::uri::Authority;

/// `http://HOST:PORT`, `https://HOST:PORT` or `unix:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// TCP, with TLS or without.
    Tcp {
        /// Whether within TLS.
        tls: bool,
        /// Name or IP address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

impl Address {
    /// What a request's `host` field says.
    pub(super) fn authority(&self) -> String {
        match self {
            Self::Tcp { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Tcp { host, port, .. } => format!("{host}:{port}"),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is not the address of an API: http://HOST:PORT, https://HOST:PORT or unix:PATH");
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(wrong()) } else { Ok(Self::Unix(PathBuf::from(path))) };
        }
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let tls = match scheme {
            "http" => false,
            "https" => true,
            _ => return Err(wrong()),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#']) {
            return Err(wrong());
        }
        let uri: Authority = rest.parse().map_err(|_| wrong())?;
        let host = uri.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || uri.as_str().contains('@') {
            return Err(wrong());
        }
        let port = match (uri.port(), uri.port_u16()) {
            (Some(_), Some(port @ 1..)) => port,
            // A port that is no number from 0 to 65535 is no port to `Authority`, but it stands there.
            (None, _) if uri.as_str() == uri.host() => {
                if tls {
                    443
                } else {
                    80
                }
            }
            _ => return Err(wrong()),
        };
        Ok(Self::Tcp { tls, host: host.to_owned(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { tls, .. } => write!(f, "{}://{}", if *tls { "https" } else { "http" }, self.authority()),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_alike() {
        for (text, shown) in [
            ("http://127.0.0.1:7080", "http://127.0.0.1:7080"),
            ("https://control.example", "https://control.example:443"),
            ("http://[::1]:7080/", "http://[::1]:7080"),
            ("unix:/run/postern/api.sock", "unix:/run/postern/api.sock"),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), shown);
            assert_eq!(shown.parse::<Address>().unwrap(), address);
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_what_one_is() {
        for text in [
            "",
            "control:7080",
            "ftp://a",
            "http://",
            "http://a:0",
            "http://a:99999",
            "unix:",
            "http://u@a",
            "http://a/b",
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(error.contains("unix:PATH"), "{text}: {error}");
        }
    }
}
