//! TLS, client certificates, and Unix sockets.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use postern_control::api::Patience;
use postern_control::settings::Settings;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::json;

use crate::bed::Bed;
use crate::client::{Answer, LONG, read_answer};

struct Files(PathBuf);

impl Files {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("postern-api-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        Self(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Issuer {
    let mut parameters = CertificateParams::new(Vec::<String>::new()).unwrap();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap()
}

/// Writes a certificate for a name and its key.
fn issue(issuer: &Issuer, common_name: &str, certificate: &Path, key: &Path) {
    let mut parameters = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    parameters.distinguished_name.push(DnType::CommonName, common_name);
    let pair = KeyPair::generate().unwrap();
    fs::write(certificate, parameters.signed_by(&pair, issuer).unwrap().pem()).unwrap();
    fs::write(key, pair.serialize_pem()).unwrap();
}

/// Makes a call over TLS, with a client certificate if one is named.
fn call(bed: &Bed, files: &Files, request: &str, certificate: Option<&str>) -> Result<Answer, std::io::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(files.path("ca.pem")).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let config = match certificate {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let chain = vec![CertificateDer::from_pem_file(files.path(&format!("{name}.pem"))).unwrap()];
            let key = PrivateKeyDer::from_pem_file(files.path(&format!("{name}.key"))).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    let connection = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
    let socket = TcpStream::connect(bed.address).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    let mut stream = StreamOwned::new(connection, socket);
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let mut bytes = Vec::new();
    match std::io::Read::read_to_end(&mut stream, &mut bytes) {
        Err(error) if bytes.is_empty() => Err(error),
        _ => Ok(Answer::parse(&bytes)),
    }
}

#[test]
fn the_common_name_of_a_client_certificate_is_the_principal_and_others_are_nobody() {
    let files = Files::new("mtls");
    let (ours, foreign) = (authority(), authority());
    fs::write(files.path("ca.pem"), ours.pem()).unwrap();
    issue(&ours, "control", &files.path("server.pem"), &files.path("server.key"));
    issue(&ours, "operator", &files.path("operator.pem"), &files.path("operator.key"));
    issue(&ours, "stranger", &files.path("stranger.pem"), &files.path("stranger.key"));
    issue(&foreign, "operator", &files.path("foreign.pem"), &files.path("foreign.key"));
    let quoted = |name: &str| format!("\"{}\"", files.path(name).display());
    let tls = format!(
        "certificate = {}\nkey = {}\nclient_ca = {}",
        quoted("server.pem"),
        quoted("server.key"),
        quoted("ca.pem")
    );
    let bed = Bed::with(&crate::bed::settings(&tls), Patience::default());
    let whoami = bed.nobody().request("GET", "/v1/whoami", &[], None);
    let answer = call(&bed, &files, &whoami, Some("operator")).unwrap();
    assert_eq!(answer.expect(200), json!({ "principal": "operator", "role": "operator" }));
    let answer = call(&bed, &files, &whoami, Some("stranger")).unwrap();
    assert_eq!(answer.error().1, "Unauthenticated");
    assert!(answer.body.contains("names no principal"), "{}", answer.body);
    let answer = call(&bed, &files, &whoami, None).unwrap();
    assert_eq!(answer.error().1, "Unauthenticated");
    let with_token = bed.operator.request("GET", "/v1/whoami", &[], None);
    call(&bed, &files, &with_token, None).unwrap().expect(200);
    // A wrong token is not made good by a right certificate.
    let wrong = with_token.replace("postern-token-", "postern-token-0");
    assert_eq!(call(&bed, &files, &wrong, Some("operator")).unwrap().status, 401);
    assert!(call(&bed, &files, &whoami, Some("foreign")).is_err(), "a foreign authority is believed");
    // Without TLS nothing is said but that it is missing.
    let mut plain = bed.operator.connect();
    plain.write_all(whoami.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    let _ = std::io::Read::read_to_end(&mut plain, &mut bytes);
    let answer = String::from_utf8_lossy(&bytes);
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("TlsRequired"), "{answer}");
    assert!(!answer.contains("principal"), "{answer}");
    call(&bed, &files, &with_token, None).unwrap().expect(200);
}

#[test]
fn a_unix_socket_is_for_its_owner_takes_the_place_of_an_old_one_and_goes_with_the_process() {
    let files = Files::new("unix");
    let path = files.path("control.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let settings = |path: &Path| {
        let listen = format!("[\"127.0.0.1:0\", \"unix:{}\"]", path.display());
        Settings::from_toml(&format!("region = \"test\"\n[api]\nlisten = {listen}\n"), "test").unwrap()
    };
    let bed = Bed::with(&settings(&path), Patience::default());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let ask = |client: &crate::client::Client| {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.write_all(client.request("GET", "/v1/whoami", &[], None).as_bytes()).unwrap();
        read_answer(&mut stream)
    };
    assert_eq!(ask(&bed.consumer).expect(200)["principal"], "shop");
    assert_eq!(ask(&bed.nobody()).status, 401);
    drop(bed);
    assert!(!path.exists());
    // Something that is no socket stays.
    fs::write(&path, "mine").unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let started = runtime.block_on(postern_control::server::Server::start_with(
        &settings(&path),
        Arc::new(postern_control::store::MemoryStore::new()),
        Patience::default(),
        Arc::new(|| 0),
    ));
    let error = started.unwrap_err().to_string();
    assert!(error.contains("something else than a socket"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
}
