//! What an operator tells control in a file: where it listens, by which certificates, and where it keeps its data.
//!
//! `configs/control.toml` is the complete example. What is wrong is said with the file, the key and the value.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read settings {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It is not TOML, or has a key or value that there is not.
    #[error("{file}: {source}")]
    Toml {
        /// The file.
        file: String,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value cannot be.
    #[error("{file}: {key}: {reason}")]
    Refused {
        /// The file.
        file: String,
        /// The key.
        key: &'static str,
        /// Why, with the value.
        reason: String,
    },
}

/// Everything that control is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Name of the region: 1…32 of a-z, 0-9 and `-`.
    pub region: String,
    /// Directory of the store and of the first operator's token. It is made if it is not there.
    #[serde(default = "data_directory")]
    pub data_directory: PathBuf,
    /// For people and programs.
    pub api: ApiSettings,
    /// For gateways; without it no gateway can connect.
    pub push: Option<PushSettings>,
}

/// The listeners of people and programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiSettings {
    /// Addresses and Unix sockets to listen on, at least one.
    pub listen: Vec<ListenAddress>,
    /// TLS on every address of `listen`; Unix sockets have none.
    #[serde(flatten)]
    pub transport: TransportSettings,
    /// Connections at a time, 1…65536 (1024); more wait to be accepted.
    #[serde(default = "connections")]
    pub connections: usize,
}

/// The listener of gateways.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PushSettings {
    /// Address and port.
    pub listen: SocketAddr,
    /// TLS.
    #[serde(flatten)]
    pub transport: TransportSettings,
}

/// TLS of a listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TransportSettings {
    /// PEM file of the certificate chain, the server's own first.
    pub certificate: Option<PathBuf>,
    /// PEM file of its private key.
    pub key: Option<PathBuf>,
    /// PEM file of the authorities whose client certificates are believed. Clients may still come without one.
    pub client_ca: Option<PathBuf>,
    /// Whether to do without TLS on an address that other hosts reach: credentials can then be read on the way.
    pub insecure: bool,
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    /// Address and port; port 0: any that is free.
    Tcp(SocketAddr),
    /// Path of a Unix socket that only its owner may use.
    Unix(PathBuf),
}

fn data_directory() -> PathBuf {
    PathBuf::from("/var/lib/postern")
}

const fn connections() -> usize {
    1024
}

impl Settings {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it cannot be read, or something in it cannot be.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let text = fs::read_to_string(path).map_err(|source| SettingsError::Read { path: path.to_owned(), source })?;
        Self::from_toml(&text, &path.display().to_string())
    }

    /// Checks a text; `file` is what errors call it.
    ///
    /// # Errors
    /// When something in it cannot be.
    pub fn from_toml(text: &str, file: &str) -> Result<Self, SettingsError> {
        let settings: Self = toml::from_str(text)
            .map_err(|source| SettingsError::Toml { file: file.to_owned(), source: Box::new(source) })?;
        settings.check().map_err(|(key, reason)| SettingsError::Refused { file: file.to_owned(), key, reason })?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        let in_region = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
        if !(1..=32).contains(&self.region.len()) || !self.region.chars().all(in_region) {
            return Err(("region", format!("\"{}\" is not 1 to 32 of a-z, 0-9 and \"-\"", self.region)));
        }
        if self.api.listen.is_empty() {
            return Err(("api.listen", "there is no address to listen on".into()));
        }
        if !(1..=65536).contains(&self.api.connections) {
            return Err(("api.connections", format!("{} is not within 1 to 65536", self.api.connections)));
        }
        let tcp = self.api.listen.iter().filter_map(|address| match address {
            ListenAddress::Tcp(address) => Some(*address),
            ListenAddress::Unix(_) => None,
        });
        self.api.transport.check(&tcp.collect::<Vec<_>>()).map_err(|(key, reason)| (key.api(), reason))?;
        if let Some(push) = &self.push {
            push.transport.check(&[push.listen]).map_err(|(key, reason)| (key.push(), reason))?;
        }
        Ok(())
    }
}

impl TransportSettings {
    fn check(&self, listen: &[SocketAddr]) -> Result<(), (TransportKey, String)> {
        match (&self.certificate, &self.key) {
            (Some(_), None) => return Err((TransportKey::Key, "is needed beside the certificate".into())),
            (None, Some(_)) => return Err((TransportKey::Certificate, "is needed beside the key".into())),
            (Some(_), Some(_)) => return Ok(()),
            (None, None) => {}
        }
        if let Some(path) = &self.client_ca {
            let reason = format!("client certificates of {} need a certificate and key here too", path.display());
            return Err((TransportKey::ClientCa, reason));
        }
        match listen.iter().find(|address| !self.insecure && !address.ip().is_loopback()) {
            Some(address) => Err((
                TransportKey::Listen,
                format!(
                    "other hosts reach {address}, so it needs a certificate and key; \"insecure = true\" does without"
                ),
            )),
            None => Ok(()),
        }
    }
}

/// A key of [`TransportSettings`], or that which they protect.
enum TransportKey {
    Listen,
    Certificate,
    Key,
    ClientCa,
}

impl TransportKey {
    const fn api(&self) -> &'static str {
        match self {
            Self::Listen => "api.listen",
            Self::Certificate => "api.certificate",
            Self::Key => "api.key",
            Self::ClientCa => "api.client_ca",
        }
    }

    const fn push(&self) -> &'static str {
        match self {
            Self::Listen => "push.listen",
            Self::Certificate => "push.certificate",
            Self::Key => "push.key",
            Self::ClientCa => "push.client_ca",
        }
    }
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(Self::Unix(PathBuf::from(path))),
            Some(_) => Err(format!("\"{text}\": the path after \"unix:\" begins with \"/\"")),
            None => text.parse().map(Self::Tcp).map_err(|_| {
                format!("\"{text}\" is neither an address and port such as 127.0.0.1:7480 nor \"unix:\" and a path")
            }),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Serialize for ListenAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ListenAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONE: &str = "region = \"home\"\n[api]\nlisten = [\"127.0.0.1:7480\"]\n";

    fn refusal(text: &str) -> String {
        Settings::from_toml(text, "control.toml").unwrap_err().to_string()
    }

    #[test]
    fn the_example_has_every_key_and_is_accepted() {
        let example = include_str!("../../configs/control.toml");
        let settings = Settings::from_toml(example, "control.toml").unwrap();
        assert_eq!(settings.data_directory, Path::new("/var/lib/postern"));
        // With what it shows commented out it is accepted as well, and then nothing is left at its default.
        let uncommented = example.lines().map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|first: char| first.is_ascii_lowercase()) => rest,
            _ => line,
        });
        let text = uncommented.collect::<Vec<_>>().join("\n");
        let settings = Settings::from_toml(&text, "control.toml").unwrap_or_else(|error| panic!("{error}"));
        let value = serde_json::to_value(&settings).unwrap();
        for (table, keys) in [("api", 6), ("push", 5)] {
            let table = value[table].as_object().unwrap();
            assert_eq!(table.len(), keys, "{table:?}");
            assert!(table.values().all(|value| !value.is_null()), "{table:?}");
        }
    }

    #[test]
    fn a_file_with_a_mistake_is_refused_with_its_name_the_key_and_the_value() {
        let missing = Settings::load(Path::new("/nonexistent/control.toml")).unwrap_err().to_string();
        assert!(missing.starts_with("cannot read settings /nonexistent/control.toml: "), "{missing}");
        for (text, words) in [
            (LONE.replace("home", "Home"), &["region", "\"Home\""][..]),
            (LONE.replace("127.0.0.1:7480", "localhost"), &["\"localhost\"", "127.0.0.1:7480"]),
            (LONE.replace("127.0.0.1:7480", "unix:control"), &["\"unix:control\"", "begins with"]),
            (LONE.replace("\"127.0.0.1:7480\"", ""), &["api.listen", "no address"]),
            (format!("{LONE}connections = 0\n"), &["api.connections", "0 is not"]),
            (format!("{LONE}conections = 9\n"), &["conections"]),
            (LONE.replace("region", "regions"), &["regions"]),
        ] {
            let error = refusal(&text);
            assert!(error.starts_with("control.toml: "), "{error}");
            for word in words {
                assert!(error.contains(word), "{error:?} does not say {word}");
            }
        }
    }

    #[test]
    fn an_address_that_other_hosts_reach_needs_tls_unless_insecure_is_said() {
        let open = LONE.replace("127.0.0.1", "0.0.0.0");
        let error = refusal(&open);
        assert!(error.contains("api.listen") && error.contains("0.0.0.0:7480"), "{error}");
        let accepted = |text: &str| {
            let result = Settings::from_toml(text, "control.toml");
            assert!(result.is_ok(), "{text}: {}", result.unwrap_err());
        };
        accepted(LONE);
        accepted(&LONE.replace("127.0.0.1:7480", "[::1]:7480"));
        accepted(&LONE.replace("127.0.0.1:7480", "unix:/run/postern/control.sock"));
        accepted(&format!("{open}insecure = true\n"));
        accepted(&format!("{open}certificate = \"a.pem\"\nkey = \"a.key\"\n"));
        let push = format!("{LONE}[push]\nlisten = \"10.0.0.1:7481\"\n");
        let error = refusal(&push);
        assert!(error.contains("push.listen") && error.contains("10.0.0.1:7481"), "{error}");
        accepted(&format!("{push}insecure = true\n"));
    }

    #[test]
    fn half_of_tls_is_refused() {
        for (line, key) in [
            ("certificate = \"a.pem\"", "api.key"),
            ("key = \"a.key\"", "api.certificate"),
            ("client_ca = \"ca.pem\"", "api.client_ca"),
        ] {
            let error = refusal(&format!("{LONE}{line}\n"));
            assert!(error.contains(key), "{error}");
        }
    }
}
