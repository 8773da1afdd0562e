//! The other end of the Unix socket, for commands.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Answer, Request};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers.
    #[error("cannot ask the gateway at {path}: {source}; is it running, and may you use its socket?")]
    Socket {
        /// Path of the socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The gateway says why not.
    #[error("the gateway answers: {0}")]
    Refused(String),
    /// Another version, perhaps.
    #[error("the gateway's answer is not understood ({source}); is it of the same version?")]
    Answer {
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// Asks the gateway at `socket` and gives each line of the answer to `each`, until it returns false.
///
/// # Errors
/// When nobody answers, or with an error.
pub fn ask(socket: &Path, request: &Request, mut each: impl FnMut(Answer) -> bool) -> Result<(), ClientError> {
    let error = |source| ClientError::Socket { path: socket.to_owned(), source };
    let mut stream = UnixStream::connect(socket).map_err(error)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(error)?;
    let mut line = serde_json::to_string(request).map_err(|source| ClientError::Answer { source })?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(error)?;
    for line in BufReader::new(stream).lines() {
        let answer = serde_json::from_str(&line.map_err(error)?).map_err(|source| ClientError::Answer { source })?;
        if let Answer::Error(reason) = answer {
            return Err(ClientError::Refused(reason));
        }
        let last = !matches!(answer, Answer::Flow(_));
        if !each(answer) || last {
            return Ok(());
        }
    }
    Err(error(io::ErrorKind::UnexpectedEof.into()))
}
