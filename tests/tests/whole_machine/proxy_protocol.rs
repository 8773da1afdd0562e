//! PROXY protocol headers at real receivers: the kernel's TCP, nginx and HAProxy; with loss, offloads on and off, big transfers
//! both ways, and a server that speaks first.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use postern_lab::network::{CLIENT, ENDPOINT, TARGETS};
use postern_lab::stream::Stream;
use postern_lab::{Client, Node, Offloads, Topology};
use postern_tables::declaration::{Declaration, ProxyProtocol};

use crate::bed::{Bed, eventually, run};

/// Where receivers of headers listen at the first target.
const PORT: u16 = 7000;
/// Length of the header.
const HEADER: usize = 100;
/// Bytes of a big transfer.
const BIG: usize = 24 << 20;
/// No step takes longer, however slow the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

/// The listener of bulk transfers leads to [`PORT`] of the first target, with headers.
fn with_headers(declaration: &mut Declaration) {
    let group = declaration.target_groups.iter_mut().find(|group| group.name == "bulk").unwrap();
    group.proxy_protocol = Some(ProxyProtocol::Aws);
    group.targets.truncate(1);
    group.targets[0].address = TARGETS[0].to_string();
    group.targets[0].port = PORT.into();
}

fn start(offloads: Offloads) -> Option<Bed> {
    Bed::start_with(Topology::builder().offloads(offloads).workers(2), with_headers)
}

fn target(bed: &Bed) -> &Node {
    bed.targets()[0].node()
}

fn connect(mut client: Client) -> TcpStream {
    client.deadline = PATIENCE;
    client.connect(postern_lab::network::bulk(), 0).unwrap()
}

/// What the header says of its connection; checked byte by byte but for the checksum, whose room is.
fn ends(header: &[u8; HEADER]) -> (SocketAddrV4, SocketAddrV4) {
    assert_eq!(header[..16], *b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x54");
    let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
    let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    assert_eq!(header[28..31], [3, 0, 4]);
    assert_eq!(header[35..39], [0xea, 0, 23, 1]);
    let id = &postern_lab::declaration::ENDPOINTS[0].as_bytes()[..22];
    assert_eq!(header[39..61], *id);
    assert_eq!(header[61..64], [4, 0, 36]);
    assert_eq!(header[64..], [0; 36]);
    (SocketAddrV4::new(address(16), port(24)), SocketAddrV4::new(address(20), port(26)))
}

/// Serves some connections at the target, one after the other.
fn serve(
    bed: &Bed,
    connections: usize,
    each: impl Fn(TcpStream, SocketAddrV4) + Send + 'static,
) -> thread::JoinHandle<()> {
    let listener = run(target(bed), || TcpListener::bind((TARGETS[0], PORT)).unwrap());
    thread::spawn(move || {
        for _ in 0..connections {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
            let mut header = [0; HEADER];
            stream.read_exact(&mut header).unwrap();
            let (client, endpoint) = ends(&header);
            assert_eq!(endpoint, postern_lab::network::bulk());
            each(stream, client);
        }
    })
}

fn pattern(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Stream::new(42).fill(&mut bytes);
    bytes
}

/// Sends and receives everything at once, so that neither side waits for the other.
fn exchange(mut stream: TcpStream, bytes: &[u8]) -> Vec<u8> {
    let mut sender = stream.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            sender.write_all(bytes).unwrap();
            sender.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        received
    })
}

fn counter(bed: &Bed, name: &str) -> u64 {
    let counters = bed.gateway().counters().unwrap();
    fn sum(value: &serde_json::Value, name: &str) -> u64 {
        match value {
            serde_json::Value::Object(map) => map
                .iter()
                .map(|(key, value)| if key == name { value.as_u64().unwrap_or(0) } else { sum(value, name) })
                .sum(),
            serde_json::Value::Array(values) => values.iter().map(|value| sum(value, name)).sum(),
            _ => 0,
        }
    }
    sum(&counters, name)
}

fn moves_bytes_both_ways(offloads: Offloads) {
    let Some(bed) = start(offloads) else { return };
    let bytes = pattern(BIG);
    let expected = bytes.clone();
    let server = serve(&bed, 2, move |stream, _| assert!(exchange(stream, &expected) == expected));
    for _ in 0..2 {
        let bytes = &bytes;
        let received = bed.ask(0, move |client| exchange(connect(client), bytes));
        assert!(received == bytes[..], "{} bytes came back", received.len());
    }
    server.join().unwrap();
    assert!(counter(&bed, "proxy_headers") >= 2);
}

#[test]
fn big_transfers_go_both_ways_behind_a_proxy_protocol_header_in_super_frames() {
    moves_bytes_both_ways(Offloads::On);
}

#[test]
fn big_transfers_go_both_ways_behind_a_proxy_protocol_header_without_offloads() {
    moves_bytes_both_ways(Offloads::Off);
}

#[test]
fn a_server_that_speaks_first_gets_its_proxy_protocol_header_from_silent_clients() {
    let Some(bed) = start(Offloads::On) else { return };
    let server = serve(&bed, 20, |mut stream, client| {
        writeln!(stream, "220 hello {client}").unwrap();
    });
    for _ in 0..20 {
        let (greeting, local) = bed.ask(0, |client| {
            let stream = connect(client);
            let local = stream.local_addr().unwrap();
            let mut greeting = String::new();
            BufReader::new(stream).read_line(&mut greeting).unwrap();
            (greeting, local)
        });
        assert_eq!(greeting.trim_end(), format!("220 hello {local}"));
    }
    server.join().unwrap();
}

/// Has the kernel of the first target drop what a rule of nftables names; false, with a word, where it cannot.
fn drop_at_target(bed: &Bed, rule: &str) -> bool {
    let commands = format!(
        "add table ip lossy; add chain ip lossy in {{ type filter hook prerouting priority -400; }}; add rule ip lossy in {rule}"
    );
    let status = run(target(bed), || Command::new("nft").arg(commands).stderr(Stdio::null()).status());
    let works = status.is_ok_and(|status| status.success());
    if !works {
        println!("skipped: nftables, by which packets are lost, is not to be had here");
    }
    works
}

#[test]
fn a_lost_proxy_protocol_header_is_sent_again_and_the_stream_stays_whole() {
    let Some(bed) = start(Offloads::Off) else { return };
    // Two of three headers, as the first try and each repetition send them, and every tenth packet besides.
    if !drop_at_target(&bed, &format!("tcp dport {PORT} ip length 152 numgen inc mod 3 lt 2 drop"))
        || !drop_at_target(&bed, &format!("tcp dport {PORT} numgen inc mod 10 lt 1 drop"))
    {
        return;
    }
    let bytes = pattern(200_000);
    let expected = bytes.clone();
    let server = serve(&bed, 6, move |mut stream, client| {
        writeln!(stream, "{client}").unwrap();
        assert!(exchange(stream, &expected) == expected);
    });
    for _ in 0..6 {
        let bytes = &bytes;
        let (received, local) = bed.ask(0, move |client| {
            let stream = connect(client);
            let local = stream.local_addr().unwrap().to_string();
            (exchange(stream, bytes), local)
        });
        let (line, rest) = received.split_at(local.len());
        assert_eq!(line, local.as_bytes());
        assert!(rest[0] == b'\n' && rest[1..] == bytes[..], "{} bytes came back", rest.len());
    }
    server.join().unwrap();
    assert!(counter(&bed, "proxy_headers_repeated") >= 6);
}

/// A server program at the first target, whose files are in a directory of its own.
struct Program {
    process: postern_lab::process::Process,
    directory: PathBuf,
}

impl Program {
    /// `None`, with a word, where the program is not installed.
    fn start(bed: &Bed, name: &str, configuration: &str, arguments: impl Fn(&PathBuf) -> Vec<String>) -> Option<Self> {
        let is_there = Command::new(name).arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !is_there.is_ok_and(|status| status.success()) {
            println!("skipped: {name} is not installed");
            return None;
        }
        let directory = std::env::temp_dir().join(format!("postern-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let configuration = configuration.replace("{directory}", &directory.display().to_string());
        fs::write(directory.join("configuration"), configuration).unwrap();
        let launcher = postern_lab::process::Launcher::new(crate::binary::binary());
        let mut command = launcher.command(name);
        command.args(arguments(&directory)).stdout(Stdio::null()).stderr(Stdio::null());
        let process = target(bed).namespace().spawn(command).unwrap();
        let program = Self { process, directory };
        eventually("the server listens", PATIENCE, || {
            run(target(bed), || TcpStream::connect((TARGETS[0], PORT)).is_ok())
        });
        Some(program)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.process.terminate(Duration::from_secs(5)));
        drop(fs::remove_dir_all(&self.directory));
    }
}

/// Asks the endpoint for a path; returns the client's end and the answer's body.
fn get(bed: &Bed, path: &str) -> (String, Vec<u8>) {
    bed.ask(0, |client| {
        let mut stream = connect(client);
        let local = stream.local_addr().unwrap().to_string();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: lab\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap_or_else(|| {
            panic!("no answer: {:?}", String::from_utf8_lossy(&answer));
        });
        assert!(answer.starts_with(b"HTTP/1."), "{:?}", String::from_utf8_lossy(&answer[..end]));
        (local, answer.split_off(end + 4))
    })
}

#[test]
fn nginx_takes_the_proxy_protocol_header_and_names_the_client() {
    for offloads in [Offloads::On, Offloads::Off] {
        let Some(bed) = start(offloads) else { return };
        let configuration = "daemon off; master_process off; pid {directory}/pid; error_log {directory}/error.log;\n\
            events {}\n\
            http {\n access_log off; client_body_temp_path {directory}; proxy_temp_path {directory};\n\
            fastcgi_temp_path {directory}; uwsgi_temp_path {directory}; scgi_temp_path {directory};\n\
            server {\n listen 7000 proxy_protocol;\n\
            location = /who { return 200 \"$proxy_protocol_addr:$proxy_protocol_port $proxy_protocol_server_addr:$proxy_protocol_server_port\"; }\n\
            location / { root {directory}; }\n } }\n";
        let arguments = |directory: &PathBuf| {
            let file = directory.join("configuration").display().to_string();
            vec!["-p".to_owned(), directory.display().to_string(), "-c".to_owned(), file]
        };
        let Some(nginx) = Program::start(&bed, "nginx", configuration, arguments) else { return };
        let bytes = pattern(BIG);
        fs::write(nginx.directory.join("big"), &bytes).unwrap();
        for _ in 0..10 {
            let (local, body) = get(&bed, "/who");
            let bulk = postern_lab::network::bulk();
            assert_eq!(String::from_utf8(body).unwrap(), format!("{local} {ENDPOINT}:{}", bulk.port()));
            assert!(local.starts_with(&CLIENT.to_string()));
        }
        let (_, body) = get(&bed, "/big");
        assert!(body == bytes, "{} bytes", body.len());
    }
}

#[test]
fn haproxy_takes_the_proxy_protocol_header_and_checks_its_crc() {
    let Some(bed) = start(Offloads::On) else { return };
    let configuration = "global\n maxconn 100\n\
        defaults\n mode http\n timeout client 60s\n timeout connect 60s\n timeout server 60s\n\
        frontend lab\n bind :7000 accept-proxy\n\
        http-request return status 200 content-type text/plain lf-string \"%[src]:%[src_port] %[dst]:%[dst_port]\"\n";
    let arguments = |directory: &PathBuf| {
        vec!["-db".to_owned(), "-f".to_owned(), directory.join("configuration").display().to_string()]
    };
    let Some(_haproxy) = Program::start(&bed, "haproxy", configuration, arguments) else { return };
    for _ in 0..10 {
        let (local, body) = get(&bed, "/");
        let bulk = postern_lab::network::bulk();
        assert_eq!(String::from_utf8(body).unwrap(), format!("{local} {bulk}"));
    }
}
