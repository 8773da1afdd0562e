//! The first start, and the next ones.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use postern_control::server::{Server, ServerError};
use postern_control::settings::{ListenAddress, Settings};
use serde_json::json;

use crate::client::Client;

#[test]
fn the_first_start_makes_an_operator_and_later_ones_keep_what_was_stored() {
    let directory = std::env::temp_dir().join(format!("postern-api-start-{}", std::process::id()));
    let text =
        format!("region = \"test\"\ndata_directory = \"{}\"\n[api]\nlisten = [\"127.0.0.1:0\"]\n", directory.display());
    let settings = Settings::from_toml(&text, "test").unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let start = || runtime.block_on(Server::start(&settings)).unwrap();
    let client = |server: &Server| {
        let ListenAddress::Tcp(address) = server.addresses()[0].clone() else { panic!("a TCP address") };
        let token = fs::read_to_string(directory.join("operator.token")).unwrap();
        Client { address, token: Some(token.trim_end().to_owned()) }
    };
    let mode = |name: &str| fs::metadata(directory.join(name)).unwrap().permissions().mode() & 0o777;

    let server = start();
    assert_eq!((mode("."), mode("operator.token")), (0o700, 0o600));
    assert_eq!(client(&server).get("/v1/whoami").expect(200), json!({ "principal": "operator", "role": "operator" }));
    let vpc = client(&server).post("/v1/vpcs", json!({ "name": "net", "spec": { "prefixes": ["10.1.0.0/16"] } }));
    let vpc = vpc.expect(201);
    let second = runtime.block_on(Server::start(&settings)).unwrap_err();
    assert!(matches!(second, ServerError::Store(_)), "{second}");
    assert_eq!(client(&server).get("/v1/vpcs/net").expect(200), vpc);
    runtime.block_on(server.stop());

    let token = fs::read_to_string(directory.join("operator.token")).unwrap();
    let server = start();
    assert_eq!(fs::read_to_string(directory.join("operator.token")).unwrap(), token);
    assert_eq!(client(&server).get("/v1/vpcs/net").expect(200), vpc);
    runtime.block_on(server.stop());

    // The first start ended before it had written the token: the operator gets another one.
    fs::remove_file(directory.join("operator.token")).unwrap();
    fs::write(directory.join("operator.token.new"), "").unwrap();
    let server = start();
    client(&server).get("/v1/whoami").expect(200);
    assert!(!directory.join("operator.token.new").exists());
    runtime.block_on(server.stop());
    fs::remove_dir_all(directory).unwrap();
}
