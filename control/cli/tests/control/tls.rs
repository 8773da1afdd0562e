//! Who is believed: `postern control` with certificates, asked by the command line and by the gateway's own side of the stream,
//! over real sockets.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postern_dataplane::control_link::target_views::TargetViews;
use postern_dataplane::control_link::{ColdStart, ControlLink, Identity, LinkParts, Publication, cold_start};
use postern_tables::Declaration;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// Nothing here takes as long, however busy the machine is.
const LONG: Duration = Duration::from_secs(60);

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Issuer {
    let mut parameters = CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap()
}

/// `postern control` with TLS on both ports. Dropped: killed, and the directory removed.
struct Secured {
    process: Child,
    directory: PathBuf,
    api: u16,
    push: u16,
}

impl Drop for Secured {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
        drop(fs::remove_dir_all(&self.directory));
    }
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Secured {
    /// Starts control with a certificate of the authority `ours`, which also vouches for clients.
    fn start(name: &str) -> (Self, Issuer) {
        let directory = std::env::temp_dir().join(format!("postern-tls-{name}-{}", std::process::id()));
        drop(fs::remove_dir_all(&directory));
        fs::create_dir_all(&directory).unwrap();
        let ours = authority("the tests' authority");
        fs::write(directory.join("ca.pem"), ours.pem()).unwrap();
        issue(&directory, &ours, "control", "control");
        let path = |file: &str| directory.join(file).display().to_string();
        let tls = format!(
            "certificate = {:?}\nkey = {:?}\nclient_ca = {:?}\n",
            path("control.pem"),
            path("control.key"),
            path("ca.pem")
        );
        let (api, push) = (free_port(), free_port());
        let settings = format!(
            "region = \"test\"\ndata_directory = {:?}\n[api]\nlisten = [\"127.0.0.1:{api}\"]\n{tls}[push]\nlisten = \
             \"127.0.0.1:{push}\"\n{tls}",
            path("data")
        );
        fs::write(directory.join("control.toml"), settings).unwrap();
        let log = fs::File::create(directory.join("control.log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
        command.args(["control", "--config"]).arg(directory.join("control.toml"));
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let control = Self { process, directory, api, push };
        until("control answers", &control, || {
            control.postern(&["whoami", "--ca", "ca.pem", "--token-file", "data/operator.token"]).status.success()
        });
        (control, ours)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("control.log")).unwrap_or_default()
    }

    /// Runs a command in the directory of certificates, against the API with TLS unless it says another.
    fn postern(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
        for variable in ["POSTERN_TOKEN", "POSTERN_TOKEN_FILE", "POSTERN_CA", "POSTERN_CERTIFICATE", "POSTERN_KEY"] {
            command.env_remove(variable);
        }
        command.env("POSTERN_API", format!("https://localhost:{}", self.api));
        command.args(arguments).current_dir(&self.directory).stdin(Stdio::null()).output().unwrap()
    }

    /// The same as the operator, for a command that must go well.
    fn operator(&self, arguments: &[&str]) -> Value {
        let credentials = ["--ca", "ca.pem", "--token-file", "data/operator.token", "--json"];
        let output = self.postern(&[arguments, &credentials].concat());
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The exit code and the words of a command that must not go well.
    fn refused(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.postern(arguments);
        assert!(!output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    fn hang_up(&self) {
        kill(Pid::from_raw(self.process.id().try_into().unwrap()), Signal::SIGHUP).unwrap();
    }
}

fn until(what: &str, control: &Secured, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !is() {
        assert!(Instant::now() < end, "{what}: not in time; control says: {}", control.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Writes `FILE.pem` and `FILE.key` with a certificate for a common name.
fn issue(directory: &Path, issuer: &Issuer, file: &str, common_name: &str) {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut parameters = CertificateParams::new(names).unwrap();
    parameters.distinguished_name.push(DnType::CommonName, common_name);
    let pair = KeyPair::generate().unwrap();
    fs::write(directory.join(file).with_extension("pem"), parameters.signed_by(&pair, issuer).unwrap().pem()).unwrap();
    fs::write(directory.join(file).with_extension("key"), pair.serialize_pem()).unwrap();
}

/// A gateway's side of the stream, without workers.
struct Gateway {
    link: ControlLink,
    name: &'static str,
}

impl Gateway {
    /// Connects to `address` as the gateway `name`, by the lines of `[control]` that are in `credentials`.
    fn start(control: &Secured, name: &'static str, address: &str, credentials: &[(&str, &str)]) -> Self {
        let state = control.directory.join(format!("state-{name}"));
        drop(fs::remove_dir_all(&state));
        let mut text = format!("[gateway]\nname = {name:?}\n[control]\naddress = \"{address}:{}\"\n", control.push);
        for (key, file) in credentials {
            text.push_str(&format!("{key} = {:?}\n", control.directory.join(file).display().to_string()));
        }
        text.push_str(&format!("state_directory = {:?}\n", state.display().to_string()));
        text.push_str("[[port]]\ninterface = \"eth1\"\n");
        let checked = Declaration::from_toml(&text, "gateway.toml").and_then(Declaration::check);
        let checked = checked.unwrap_or_else(|errors| panic!("{errors}"));
        let settings = checked.control.clone().unwrap();
        let ColdStart { tables, applied, state } = cold_start(&checked, &settings).unwrap();
        let (publications, mut requests) = mpsc::channel::<Publication>(1);
        std::thread::spawn(move || {
            while let Some(Publication { settled, .. }) = requests.blocking_recv() {
                let _ = settled.send(());
            }
        });
        let link = ControlLink::start(LinkParts {
            settings,
            identity: Identity { gateway: name.into(), boot_id: "b007".into(), ports: vec!["eth1".into()] },
            tables: Arc::new(Mutex::new(tables)),
            applied,
            state,
            counters: Vec::new(),
            publications,
            views: Arc::new(TargetViews::default()),
        });
        Self { link: link.unwrap(), name }
    }

    fn connects(&self, control: &Secured) {
        let status = self.link.status();
        until("the gateway connects", control, || {
            let shown = control.operator(&["gateway", "show", self.name]);
            status.report().connected && shown["status"]["connected"] == true
        });
    }

    /// It must not get a stream, and say these words of why. Within TLS 1.3 it can happen that a client's first words cross
    /// the alert, and that the transport forgets the alert over it: then the next try tells.
    fn ends_refused(self, control: &Secured, words: &str) {
        let status = self.link.status();
        until(&format!("the gateway says {words:?}"), control, || {
            assert_eq!(status.counters().streams.get(), 0, "it has a stream");
            status.report().last_error.is_some_and(|error| error.contains(words))
        });
    }
}

#[test]
fn a_gateway_is_known_by_its_certificate_and_who_is_not_hears_why_on_both_sides() {
    let (control, ours) = Secured::start("push");
    control.operator(&["gateway", "create", "gw1"]);
    control.operator(&["gateway", "create", "gw2"]);
    control.operator(&["principal", "create", "gw1"]);
    let token = control.operator(&["principal", "token", "gw1"]);
    fs::write(control.directory.join("gw1.token"), token["token"].as_str().unwrap()).unwrap();
    let foreign = authority("somebody else");
    fs::write(control.directory.join("foreign-ca.pem"), foreign.pem()).unwrap();
    issue(&control.directory, &ours, "gw1", "gw1");
    issue(&control.directory, &foreign, "foreign", "gw1");
    let address = "https://localhost";
    let own = [("certificate", "gw1.pem"), ("key", "gw1.key"), ("ca", "ca.pem")];
    let says = |words: &str| {
        until(&format!("control writes {words:?}"), &control, || control.log().contains(words));
    };

    Gateway::start(&control, "gw1", address, &own).connects(&control);
    Gateway::start(&control, "gw1", address, &[("ca", "ca.pem"), ("token_file", "gw1.token")]).connects(&control);

    // The certificate of another gateway.
    Gateway::start(&control, "gw2", address, &own)
        .ends_refused(&control, "the certificate of gw1 does not allow to be gateway \"gw2\"");
    says("is refused: the certificate of gw1 does not allow to be gateway \"gw2\"");
    // No certificate, and a token that is nobody's.
    fs::write(control.directory.join("wrong.token"), "made-up").unwrap();
    let nobody = [("ca", "ca.pem"), ("token_file", "wrong.token")];
    Gateway::start(&control, "gw1", address, &nobody).ends_refused(&control, "the token is not known");
    says("is refused: the token is not known");
    // A certificate that no authority of control's has signed.
    let stranger = [("certificate", "foreign.pem"), ("key", "foreign.key"), ("ca", "ca.pem")];
    Gateway::start(&control, "gw1", address, &stranger)
        .ends_refused(&control, "control does not believe this gateway's certificate");
    says("is refused: the TLS handshake failed: invalid peer certificate: UnknownIssuer");
    // Somebody whom the gateway does not believe in control's place.
    let mistaken = [("certificate", "gw1.pem"), ("key", "gw1.key"), ("ca", "foreign-ca.pem")];
    Gateway::start(&control, "gw1", address, &mistaken)
        .ends_refused(&control, "no authority in control.ca has signed control's certificate");
    says("is refused: the TLS handshake failed: received fatal alert: UnknownCA");
    // Plain text to a port that speaks TLS.
    let plain = [("token_file", "gw1.token")];
    Gateway::start(&control, "gw1", "http://localhost", &plain)
        .ends_refused(&control, "the address of control has to begin with https://");
    says("is refused: it speaks plain text, and this port TLS only");

    Gateway::start(&control, "gw1", address, &own).connects(&control);
}

#[test]
fn a_gateway_that_speaks_tls_to_a_port_without_says_so() {
    let (mut control, _ours) = Secured::start("push-plain");
    let settings = fs::read_to_string(control.directory.join("control.toml")).unwrap();
    let (before, _) = settings.split_once("[push]").unwrap();
    let plain = format!("{before}[push]\nlisten = \"127.0.0.1:{}\"\n", control.push);
    fs::write(control.directory.join("control.toml"), plain).unwrap();
    control.process.kill().unwrap();
    control.process.wait().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
    command.args(["control", "--config"]).arg(control.directory.join("control.toml"));
    control.process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let credentials = ["whoami", "--ca", "ca.pem", "--token-file", "data/operator.token"];
    until("control answers", &control, || control.postern(&credentials).status.success());
    let credentials = [("ca", "ca.pem"), ("token_file", "data/operator.token")];
    Gateway::start(&control, "gw1", "https://localhost", &credentials)
        .ends_refused(&control, "what listens there speaks no TLS");
}

#[test]
fn commands_over_tls_believe_only_their_authority_and_are_known_by_certificate() {
    let (control, ours) = Secured::start("api");
    let foreign = authority("somebody else");
    fs::write(control.directory.join("foreign-ca.pem"), foreign.pem()).unwrap();
    issue(&control.directory, &ours, "operator", "operator");
    issue(&control.directory, &foreign, "foreign", "operator");
    let token = ["--token-file", "data/operator.token"];

    let shown = ["--certificate", "operator.pem", "--key", "operator.key"];
    let output = control.postern(&[&["whoami", "--json", "--ca", "ca.pem"][..], &shown].concat());
    let who: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(who, json!({ "principal": "operator", "role": "operator" }));

    let (code, words) = control.refused(&[&["whoami", "--ca", "foreign-ca.pem"][..], &token].concat());
    assert_eq!(code, 3);
    assert!(words.contains("no authority in --ca has signed control's certificate"), "{words}");
    let (code, words) = control.refused(&[&["whoami"][..], &token].concat());
    assert_eq!(code, 2);
    assert!(words.contains("https needs --ca"), "{words}");
    let (code, words) =
        control.refused(&["whoami", "--ca", "ca.pem", "--certificate", "foreign.pem", "--key", "foreign.key"]);
    assert_eq!(code, 3);
    assert!(words.contains("control does not believe the certificate"), "{words}");
    let (code, words) = control.refused(&["whoami", "--ca", "ca.pem"]);
    assert_eq!(code, 1, "{words}");
    // Plain text to a port that speaks TLS, and the other way round.
    let plain = format!("http://localhost:{}", control.api);
    let (code, words) = control.refused(&[&["whoami", "--api", plain.as_str()][..], &token].concat());
    assert_eq!(code, 1);
    assert!(words.contains("the address of the API has to begin with https://"), "{words}");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let none = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    std::thread::spawn(move || {
        // What can be asked again is.
        for mut stream in listener.incoming().map_while(Result::ok).take(2) {
            let _ = std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n");
            let _ = std::io::Read::read_to_end(&mut stream, &mut Vec::new());
        }
    });
    let (code, words) = control.refused(&[&["whoami", "--api", none.as_str(), "--ca", "ca.pem"][..], &token].concat());
    assert_eq!(code, 3);
    assert!(words.contains("what listens there speaks no TLS"), "{words}");
}

#[test]
fn certificates_that_are_exchanged_are_taken_at_sighup_and_bad_ones_are_not() {
    let (control, ours) = Secured::start("reload");
    let next = authority("the next authority");
    let token = ["--token-file", "data/operator.token"];
    let believes = |ca: &str| control.postern(&[&["whoami", "--ca", ca][..], &token].concat()).status.success();
    fs::write(control.directory.join("next-ca.pem"), next.pem()).unwrap();
    assert!(believes("ca.pem") && !believes("next-ca.pem"));

    // What cannot be used changes nothing.
    let good = fs::read(control.directory.join("control.pem")).unwrap();
    fs::write(control.directory.join("control.pem"), "nothing").unwrap();
    control.hang_up();
    until("control says that it cannot", &control, || {
        control.log().contains("the certificates that were read before stay")
    });
    assert!(believes("ca.pem"));
    fs::write(control.directory.join("control.pem"), good).unwrap();

    issue(&control.directory, &next, "control", "control");
    control.hang_up();
    until("control shows the new certificate", &control, || believes("next-ca.pem"));
    assert!(!believes("ca.pem"), "the old one is shown no more");
    // Clients are still vouched for by the authority that client_ca names.
    let made = control.postern(&[&["gateway", "create", "gw1", "--ca", "next-ca.pem"][..], &token].concat());
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    issue(&control.directory, &ours, "gw1", "gw1");
    let own = [("certificate", "gw1.pem"), ("key", "gw1.key"), ("ca", "next-ca.pem")];
    let gateway = Gateway::start(&control, "gw1", "https://localhost", &own);
    until("the gateway gets its stream", &control, || gateway.link.status().report().connected);
}
