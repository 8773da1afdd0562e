//! Which gateway a command asks.

use std::path::PathBuf;

use clap::Args;
use postern_dataplane::configuration::{self, ConfigurationError};

/// Where a gateway listens unless its configuration says otherwise.
const SOCKET: &str = "/run/postern/control.sock";

/// The running gateway to ask; without options the one at /run/postern/control.sock.
#[derive(Args)]
pub(crate) struct GatewaySocket {
    /// Unix socket of the gateway
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    socket: Option<PathBuf>,
    /// Configuration file of the gateway
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl GatewaySocket {
    /// Path of the socket.
    pub(crate) fn path(&self) -> Result<PathBuf, ConfigurationError> {
        match (&self.socket, &self.config) {
            (Some(socket), _) => Ok(socket.clone()),
            (None, Some(file)) => Ok(configuration::load(file)?.gateway.control_socket),
            (None, None) => Ok(PathBuf::from(SOCKET)),
        }
    }
}
