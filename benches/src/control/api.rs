//! A client of control's API over its Unix socket: one connection, one call after the other.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::BenchError;

/// Longest that a call may take: what fills the catalog is large.
const PATIENCE: Duration = Duration::from_secs(300);

/// The API as one principal sees it.
#[derive(Debug)]
pub struct Api {
    socket: PathBuf,
    token: String,
    stream: Option<BufReader<UnixStream>>,
}

impl Api {
    /// The API behind a socket, asked with the token in a file.
    ///
    /// # Errors
    /// When the token cannot be read.
    pub fn new(socket: &Path, token: &Path) -> Result<Self, BenchError> {
        let token = std::fs::read_to_string(token).map_err(|error| BenchError::Io("read a token", error))?;
        Ok(Self { socket: socket.to_owned(), token: token.trim().to_owned(), stream: None })
    }

    /// Reads.
    ///
    /// # Errors
    /// What control answered, or that it did not.
    pub fn get(&mut self, path: &str) -> Result<Value, BenchError> {
        self.call("GET", path, None)
    }

    /// Makes something.
    ///
    /// # Errors
    /// What control answered, or that it did not.
    pub fn post(&mut self, path: &str, body: &Value) -> Result<Value, BenchError> {
        self.call("POST", path, Some(body))
    }

    /// Deletes something.
    ///
    /// # Errors
    /// What control answered, or that it did not.
    pub fn delete(&mut self, path: &str) -> Result<Value, BenchError> {
        self.call("DELETE", path, None)
    }

    fn call(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, BenchError> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nHost: control\r\nAuthorization: Bearer {}\r\n", self.token);
        if !body.is_empty() {
            request.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
        }
        request.push_str("\r\n");
        request.push_str(&body);
        // One that was not used for a while is closed by control, before it has read anything.
        let kept = self.stream.is_some();
        let answer = match self.exchange(&request) {
            Err(_) if kept => self.exchange(&request),
            answer => answer,
        };
        let (status, body) = answer.map_err(|error| BenchError::Io("ask control", error))?;
        let value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        if (200..300).contains(&status) {
            return Ok(value);
        }
        let said = value["message"].as_str().unwrap_or("nothing").to_owned();
        Err(BenchError::Refused { call: format!("{method} {path}"), status, said })
    }

    /// Status and body of the answer. After an error the next request has a new connection.
    fn exchange(&mut self, request: &str) -> std::io::Result<(u16, Vec<u8>)> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let stream = UnixStream::connect(&self.socket)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                BufReader::new(stream)
            }
        };
        stream.get_mut().write_all(request.as_bytes())?;
        let answer = read(&mut stream)?;
        self.stream = Some(stream);
        Ok(answer)
    }
}

/// Status and body of an answer that says how long it is.
fn read(stream: &mut BufReader<UnixStream>) -> std::io::Result<(u16, Vec<u8>)> {
    let broken = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned());
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| broken("the answer has no status"))?;
    let mut length = 0;
    loop {
        line.clear();
        stream.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().map_err(|_| broken("the answer's length is no number"))?;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok((status, body))
}
