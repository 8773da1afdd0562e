//! A client of control's API: one request after another, each on a connection of its own.

mod address;
mod connection;
mod options;

use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::Value;

pub(crate) use address::Address;
pub(crate) use connection::Connector;
pub(crate) use options::Options;

/// Exit code of a command that control refused.
const REFUSED: u8 = 1;
/// Exit code of a command that was not typed right, as clap has it.
const USAGE: u8 = 2;
/// Exit code of a command that could not reach control.
const UNREACHABLE: u8 = 3;
/// Exit code of a command that waited in vain.
const NOT_IN_TIME: u8 = 4;

/// What every command that asks control says of its exit codes.
pub(crate) const EXIT_CODES: &str = "Exit codes: 0 done, 1 refused, 2 not typed right, 3 control cannot be reached, \
                                     4 not so within the time of --wait.";

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Something that was typed, or a file that it names, is not right.
    #[error("{0}")]
    Usage(String),
    /// No answer.
    #[error("control at {address} cannot be reached: {reason}")]
    Unreachable {
        /// Where it was looked for.
        address: String,
        /// Why there is no answer.
        reason: String,
    },
    /// An answer that says no.
    #[error("{0}")]
    Refused(Refusal),
    /// What was waited for did not come.
    #[error("{0}")]
    NotInTime(String),
}

impl ClientError {
    /// Exit code of the command.
    pub(crate) const fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => USAGE,
            Self::Unreachable { .. } => UNREACHABLE,
            Self::Refused(_) => REFUSED,
            Self::NotInTime(_) => NOT_IN_TIME,
        }
    }

    /// Whether control said that there is no such thing.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.status == StatusCode::NOT_FOUND.as_u16())
    }
}

/// The API's way to say no.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Refusal {
    /// HTTP status.
    #[serde(skip)]
    pub(crate) status: u16,
    /// A word for programs.
    #[serde(default)]
    pub(crate) code: String,
    /// A sentence for people.
    #[serde(default)]
    pub(crate) message: String,
    /// The field of the request that is not right.
    #[serde(default)]
    pub(crate) field: Option<String>,
    /// What uses the object that was to be deleted.
    #[serde(default)]
    pub(crate) users: Vec<String>,
}

impl Refusal {
    /// Not control's refusal of a request, but of what it asked for.
    pub(crate) fn of_state(message: String) -> Self {
        Self { status: 0, code: String::new(), message, field: None, users: Vec::new() }
    }

    /// Whether somebody else has changed the object meanwhile.
    pub(crate) fn is_conflict(&self) -> bool {
        self.status == StatusCode::PRECONDITION_FAILED.as_u16()
            || (self.status == StatusCode::CONFLICT.as_u16() && self.code.eq_ignore_ascii_case("conflict"))
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.message.is_empty() {
            write!(f, "control refused with status {}", self.status)?;
        } else {
            f.write_str(&self.message)?;
        }
        if let Some(field) = self.field.as_deref().filter(|field| !field.is_empty() && !self.message.contains(field)) {
            write!(f, "\n  field: {field}")?;
        }
        for user in self.users.iter().filter(|user| !self.message.contains(user.as_str())) {
            write!(f, "\n  used by {user}")?;
        }
        Ok(())
    }
}

/// A request that is to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    method: Method,
    /// Path and query.
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Option<Value>,
}

impl Request {
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    pub(crate) fn post(path: impl Into<String>, body: Value) -> Self {
        Self { body: Some(body), ..Self::new(Method::POST, path) }
    }

    pub(crate) fn put(path: impl Into<String>, body: Value) -> Self {
        Self { body: Some(body), ..Self::new(Method::PUT, path) }
    }

    pub(crate) fn delete(path: impl Into<String>) -> Self {
        Self::new(Method::DELETE, path)
    }

    /// Gives a DELETE a body.
    pub(crate) fn body(mut self, body: Value) -> Self {
        self.body = Some(body);
        self
    }

    /// Only if the object still has this version.
    pub(crate) fn if_version(mut self, version: Option<u64>) -> Self {
        self.headers.extend(version.map(|version| ("if-match", format!("\"{version}\""))));
        self
    }

    /// Done once, however often it is sent with the same key.
    pub(crate) fn idempotency_key(mut self, key: String) -> Self {
        self.headers.push(("idempotency-key", key));
        self
    }

    fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), headers: Vec::new(), body: None }
    }

    /// Whether it may be sent again when nobody knows what became of it.
    fn repeatable(&self) -> bool {
        self.method == Method::GET || self.headers.iter().any(|(name, _)| *name == "idempotency-key")
    }
}

/// Control's API at an address, as somebody.
#[derive(Debug)]
pub(crate) struct Api {
    connector: Connector,
    token: Option<String>,
    runtime: tokio::runtime::Runtime,
}

impl Api {
    /// An API that is asked with a bearer token, or without.
    pub(crate) fn new(connector: Connector, token: Option<String>) -> Result<Self, ClientError> {
        // No threads: the lab asks from the namespace of the calling thread, in which a socket is made.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| ClientError::Usage(format!("cannot start a runtime: {error}")))?;
        Ok(Self { connector, token, runtime })
    }

    /// Sends a request and returns the body of the answer; null if it has none.
    pub(crate) fn send(&self, request: &Request) -> Result<Value, ClientError> {
        let text = self.send_text(request)?;
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).map_err(|error| self.unreachable(format!("its answer is not JSON: {error}")))
    }

    /// The same for an answer that need not be JSON.
    pub(crate) fn send_text(&self, request: &Request) -> Result<String, ClientError> {
        let once = || self.runtime.block_on(self.connector.exchange(request, self.token.as_deref()));
        let mut answer = once();
        if answer.is_err() && request.repeatable() {
            answer = once();
        }
        let (status, body) = answer.map_err(|reason| self.unreachable(reason))?;
        if status.is_success() {
            return Ok(body);
        }
        let refusal = serde_json::from_str::<Refusal>(&body);
        let refusal = refusal.unwrap_or_else(|_| Refusal::of_state(body.lines().next().unwrap_or_default().to_owned()));
        Err(ClientError::Refused(Refusal { status: status.as_u16(), ..refusal }))
    }

    fn unreachable(&self, reason: String) -> ClientError {
        ClientError::Unreachable { address: self.connector.address().to_string(), reason }
    }
}

/// A path's segment or a query's value: everything but letters, digits and `-._~` as `%XX` (RFC 3986, section 2).
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(char::from(byte)),
            other => escaped.push_str(&format!("%{other:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;
    use std::thread::JoinHandle;

    use super::*;

    /// Answers each connection with the next of some answers; returns the requests.
    fn serve<S: Read + Write + Send + 'static>(
        mut accept: impl FnMut() -> S + Send + 'static,
        answers: Vec<&'static str>,
    ) -> JoinHandle<Vec<String>> {
        std::thread::spawn(move || {
            let mut requests = Vec::new();
            for answer in answers {
                let mut stream = BufReader::new(accept());
                let (mut request, mut length) = (String::new(), 0);
                loop {
                    let mut line = String::new();
                    stream.read_line(&mut line).unwrap();
                    if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                    request.push_str(&line);
                    if line == "\r\n" || line.is_empty() {
                        break;
                    }
                }
                let mut body = vec![0; length];
                stream.read_exact(&mut body).unwrap();
                request.push_str(&String::from_utf8(body).unwrap());
                requests.push(request);
                stream.get_mut().write_all(answer.as_bytes()).unwrap();
            }
            requests
        })
    }

    fn over_tcp(answers: Vec<&'static str>) -> (Api, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let server = serve(move || listener.accept().unwrap().0, answers);
        (Api::new(Connector::new(address.parse().unwrap(), None), Some("secret".to_owned())).unwrap(), server)
    }

    #[test]
    fn a_request_carries_token_version_key_and_body() {
        let (api, server) = over_tcp(vec!["HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{\"a\":1}"]);
        let request = Request::put("/v1/vpcs/a%2Fb", serde_json::json!({ "spec": {} }));
        let request = request.if_version(Some(7)).idempotency_key("key".to_owned());
        assert_eq!(api.send(&request).unwrap(), serde_json::json!({ "a": 1 }));
        let request = server.join().unwrap().remove(0);
        assert!(request.starts_with("PUT /v1/vpcs/a%2Fb HTTP/1.1\r\n"), "{request}");
        for part in ["authorization: Bearer secret", "if-match: \"7\"", "idempotency-key: key", "{\"spec\":{}}"] {
            assert!(request.contains(part), "{part}: {request}");
        }
    }

    #[test]
    fn a_refusal_is_shown_as_a_sentence_with_field_and_users() {
        let (api, server) = over_tcp(vec![
            "HTTP/1.1 409 Conflict\r\ncontent-length: 95\r\n\r\n{\"code\":\"in-use\",\"message\":\"the VPC \
             is used\",\"field\":\"spec.prefixes\",\"users\":[\"endpoint web\"]}     ",
        ]);
        let error = api.send(&Request::delete("/v1/vpcs/a")).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert_eq!(error.to_string(), "the VPC is used\n  field: spec.prefixes\n  used by endpoint web");
        server.join().unwrap();
    }

    #[test]
    fn what_is_no_api_and_what_is_not_there_cannot_be_reached() {
        let (api, server) = over_tcp(vec!["SSH-2.0\r\n", "SSH-2.0\r\n"]);
        assert_eq!(api.send(&Request::get("/v1/vpcs")).unwrap_err().exit_code(), 3);
        server.join().unwrap();
        let error = api.send(&Request::get("/v1/vpcs")).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains("cannot be reached"), "{error}");
    }

    #[test]
    fn a_creation_whose_answer_was_lost_is_sent_again_with_the_same_key_and_a_change_is_not() {
        let (api, server) = over_tcp(vec!["", "HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\n{}", ""]);
        let create = Request::post("/v1/vpcs", Value::Null).idempotency_key("k".to_owned());
        api.send(&create).unwrap();
        assert_eq!(api.send(&Request::post("/v1/apply", Value::Null)).unwrap_err().exit_code(), 3);
        let requests = server.join().unwrap();
        assert_eq!(requests.len(), 3);
        assert_eq!(requests[0], requests[1]);
    }

    #[test]
    fn an_api_on_a_unix_socket_is_asked() {
        let path = std::env::temp_dir().join(format!("postern-client-{}.sock", std::process::id()));
        drop(std::fs::remove_file(&path));
        let listener = UnixListener::bind(&path).unwrap();
        let answers = vec!["HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ntrue"];
        let server = serve(move || listener.accept().unwrap().0, answers);
        let address = format!("unix:{}", path.display()).parse().unwrap();
        let api = Api::new(Connector::new(address, None), None).unwrap();
        assert_eq!(api.send(&Request::get("/v1/whoami")).unwrap(), Value::Bool(true));
        assert!(!server.join().unwrap()[0].contains("authorization"));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn names_are_escaped_in_paths() {
        assert_eq!(escape("a-b.c/d e?ü"), "a-b.c%2Fd%20e%3F%C3%BC");
    }
}
