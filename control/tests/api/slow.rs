//! Clients that are slow, silent, or too many.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use postern_control::api::Patience;

use crate::bed::{Bed, settings};
use crate::client::{LONG, read_answer};

fn impatient() -> Patience {
    Patience {
        handshake: Duration::from_secs(1),
        head: Duration::from_secs(1),
        body: Duration::from_secs(1),
        answer: Duration::from_secs(1),
        drain: Duration::from_secs(1),
    }
}

/// Writes bytes slowly until the server closes, and says what it has answered.
fn drip(stream: &mut TcpStream, byte: &[u8]) -> String {
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let start = Instant::now();
    let mut answer = Vec::new();
    loop {
        assert!(start.elapsed() < LONG, "a slow client is never cut");
        let cut = stream.write_all(byte).is_err();
        let mut part = [0; 4096];
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(&part[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && !cut => {}
            Err(_) => break,
        }
    }
    String::from_utf8(answer).unwrap()
}

#[test]
fn who_sends_its_head_or_its_body_too_slowly_is_cut_and_others_are_served() {
    let bed = Bed::with(&settings(""), impatient());
    let mut silent = bed.nobody().connect();
    assert_eq!(silent.read(&mut [0; 1]).unwrap_or(0), 0, "a client that says nothing is cut");
    let mut slow = bed.nobody().connect();
    slow.write_all(b"GET /healthz HTTP/1.1\r\nHost: control\r\nX: ").unwrap();
    let answer = drip(&mut slow, b"x");
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    let mut slow = bed.nobody().connect();
    let request = bed.provider.request("POST", "/v1/vpcs", &[], Some(&" ".repeat(100_000)));
    slow.write_all(&request.as_bytes()[..request.len() - 99_000]).unwrap();
    let answer = drip(&mut slow, b" ");
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("\"code\":\"Timeout\""), "{answer}");
    bed.provider.get("/v1/whoami").expect(200);
}

#[test]
fn a_connection_that_is_kept_open_and_not_used_is_cut() {
    let bed = Bed::with(&settings(""), impatient());
    let mut stream = bed.nobody().connect();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: control\r\n\r\n").unwrap();
    // Without `Connection: close` the server's end comes only after its patience.
    assert_eq!(read_answer(&mut stream).status, 200);
}

#[test]
fn clients_beyond_the_bound_wait_and_are_served_when_others_are_gone() {
    let bed = Bed::with(&settings("connections = 4"), impatient());
    let silent: Vec<_> = (0..12).map(|_| bed.nobody().connect()).collect();
    // The silent ones take every place until they are cut, three times over.
    bed.provider.get("/v1/whoami").expect(200);
    drop(silent);
}

#[test]
fn who_does_not_read_its_answers_is_cut() {
    let bed = Bed::with(&settings("connections = 1"), impatient());
    let mut deaf = bed.nobody().connect();
    deaf.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let request = bed.nobody().request("GET", "/v1/openapi.json", &[], None).replace("Connection: close\r\n", "");
    // As many as the sockets' buffers do not take; the write ends when the server reads no more, or has cut.
    for _ in 0..2000 {
        if deaf.write_all(request.as_bytes()).is_err() {
            break;
        }
    }
    // The only place is free again.
    bed.provider.get("/v1/whoami").expect(200);
    drop(deaf);
}

#[test]
fn a_client_that_waits_does_not_hold_up_the_end_of_the_process() {
    let bed = Bed::with(&settings(""), impatient());
    let provider = bed.provider.clone();
    let waiting = std::thread::spawn(move || provider.get("/v1/events?wait_seconds=60"));
    std::thread::sleep(Duration::from_millis(200));
    let silent = bed.nobody().connect();
    let start = Instant::now();
    drop(bed);
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    // It came to its end with an answer, unless it began to wait only after the end.
    if let Ok(answer) = waiting.join() {
        assert_eq!(answer.status, 200);
    }
    drop(silent);
}
