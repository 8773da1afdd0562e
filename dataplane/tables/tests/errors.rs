//! Every mistake in a file is named with file, key, value and what is allowed.

use postern_tables::{Declaration, Errors};

const LAB: &str = include_str!("lab.toml");

fn errors(text: &str) -> Errors {
    match Declaration::from_toml(text, "lab.toml").and_then(Declaration::check) {
        Ok(_) => panic!("nothing is wrong with\n{text}"),
        Err(errors) => errors,
    }
}

/// The lab's text with the first `old` replaced by `new`.
fn lab(old: &str, new: &str) -> String {
    assert!(LAB.contains(old), "the lab has no {old}");
    LAB.replacen(old, new, 1)
}

/// What stands there, what is written instead, and all that is said about it.
type Case = (&'static str, &'static str, &'static str);

fn each_says(cases: &[Case]) {
    let mut wrong = String::new();
    for (old, new, expected) in cases {
        let said = errors(&lab(old, new)).to_string();
        let expected: Vec<String> = expected.lines().map(|line| format!("lab.toml: {}", line.trim())).collect();
        if said != expected.join("\n") {
            wrong.push_str(&format!("\n{new}\n  says:     {said}\n  expected: {}", expected.join("\n")));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn what_is_not_toml_or_unknown_is_named_with_its_line() {
    each_says(&[
        ("[gateway]", "[gateway", r#"line 1: unclosed table, expected `]`, in: [gateway"#),
        (
            "name = \"lab\"",
            "nmae = \"lab\"",
            r#"line 2: unknown field `nmae`, expected one of `name`, `run_directory`, `metrics`, `metrics_public`, `control_socket`, `io`, `io_uring_sqpoll`, in: nmae = "lab""#,
        ),
        ("name = \"lab\"", "name = 7", r#"line 2: invalid type: integer `7`, expected a string, in: name = 7"#),
        (
            "mode = \"own\"",
            "mode = \"mine\"",
            r#"line 6: unknown variant `mine`, expected `own` or `shared`, in: mode = "mine""#,
        ),
        (
            "mode = \"own\"",
            "mode = \"own\"\nio = \"dpdk\"",
            r#"line 7: unknown variant `dpdk`, expected one of `af_packet`, `io_uring`, `af_xdp`, `auto`, in: io = "dpdk""#,
        ),
        (
            "name = \"lab\"",
            "io = \"AF_PACKET\"",
            r#"line 2: unknown variant `AF_PACKET`, expected one of `af_packet`, `io_uring`, `af_xdp`, `auto`, in: io = "AF_PACKET""#,
        ),
        ("vlan = 20", "vlan = \"20\"", r#"line 28: invalid type: string "20", expected an integer, in: vlan = "20""#),
        (
            "port = 8080",
            "prot = 8080",
            r#"line 54: unknown field `prot`, expected one of `address`, `port`, `weight`, `mapped_port`, `zone`, in: prot = 8080"#,
        ),
        (
            "[[service]]",
            "[[services]]",
            r#"line 74: unknown field `services`, expected one of `gateway`, `control`, `workers`, `selection`, `limits`, `port`, `vpc`, `attachment`, `route`, `snat_pool`, `security_group`, `target_group`, `load_balancer`, `service`, `endpoint`, in: [[services]]"#,
        ),
        ("name = \"lab\"", "name = \"lab\"\nname = \"lab\"", r#"line 3: duplicate key, in: name = "lab""#),
    ]);
}

#[test]
fn a_file_with_control_declares_nothing_else_and_says_how_to_get_there() {
    let says = |control: &str, expected: &[&str]| {
        let text = format!("[control]\n{control}\n[[port]]\ninterface = \"eth1\"\n");
        let said = errors(&text).to_string();
        let expected: Vec<_> = expected.iter().map(|line| format!("lab.toml: {line}")).collect();
        assert_eq!(said, expected.join("\n"), "{control}");
    };
    let address = "control.address = ";
    let form = "https:// with a host and a port, such as https://control.example.com:7443";
    let token = "token_file = \"/t\"";
    says(&format!("ca = \"/c\"\n{token}"), &[&format!("{address}\"\": is required; allowed is {form}")]);
    says(
        &format!("address = \"control:1\"\nca = \"/c\"\n{token}"),
        &[&format!("{address}\"control:1\": is not {form}")],
    );
    says(
        &format!("address = \"http://10.0.0.1:1\"\n{token}"),
        &[&format!(
            "{address}\"http://10.0.0.1:1\": is not encrypted; allowed is https://, or http:// with a loopback address such as \
             127.0.0.1"
        )],
    );
    says(
        &format!("address = \"https://a:1\"\n{token}"),
        &[
            "control.ca = \"\": is required; allowed is the absolute path of the certificates that control's is checked with",
        ],
    );
    says("address = \"http://localhost:1\"\nkey = \"/k\"", &["control.key = \"/k\": needs control.certificate too"]);
    says(
        "address = \"http://localhost:1\"",
        &[
            "control.token_file = \"\": is required; allowed is the absolute path of a file with the gateway's token, unless \
           there is a certificate",
        ],
    );
    says(
        &format!("address = \"http://localhost:1\"\n{token}\nstate_directory = \"tables\""),
        &["control.state_directory = \"tables\": is not an absolute path such as /run/postern"],
    );

    let both = LAB.replacen("[[port]]", &format!("[control]\naddress = \"http://localhost:1\"\n{token}\n[[port]]"), 1);
    let said = errors(&both).to_string();
    assert_eq!(said.matches("is declared in a file with [control]").count(), said.lines().count(), "{said}");
    for table in ["vpc", "attachment", "route", "snat_pool", "target_group", "load_balancer", "service", "endpoint"] {
        assert!(said.contains(&format!("leave [[{table}]] out, or [control]")), "{said}");
    }
}

#[test]
fn a_reload_may_move_to_another_control_but_not_away_from_it() {
    let file = |control: &str| {
        let text = format!("{control}\n[[port]]\ninterface = \"eth1\"\n");
        Declaration::from_toml(&text, "lab.toml")
            .and_then(Declaration::check)
            .unwrap_or_else(|errors| panic!("{errors}"))
    };
    let control = "[control]\naddress = \"http://localhost:1\"\ntoken_file = \"/t\"\n";
    let running = file(control);
    let moved = file(&control.replace("localhost:1", "localhost:2")).reload(&running).unwrap();
    assert_eq!(moved.control.unwrap().address.port, 2);
    let error = file("").reload(&running).unwrap_err().to_string();
    assert_eq!(error, "lab.toml: control = absent: was present when this process started; changing it needs a restart");
    let error = file(&format!("{control}state_directory = \"/srv\"")).reload(&running).unwrap_err().to_string();
    assert!(error.contains("control.state_directory = \"/srv\": was \"/var/lib/postern\""), "{error}");
    let key = format!("{control}[selection]\nkey = \"{}\"", "ab".repeat(16));
    let error = file(&key).reload(&running).unwrap_err().to_string();
    assert_eq!(
        error,
        "lab.toml: selection.key = another: was as it was when this process started; changing it needs a restart"
    );
}

#[test]
fn settings_of_the_process_are_checked() {
    each_says(&[
        (
            "name = \"lab\"",
            "name = \"\"",
            r#"gateway.name = "": is required; allowed is 1 to 128 letters, digits and . _ - : /"#,
        ),
        (
            "name = \"lab\"",
            "name = \"the lab\"",
            r#"gateway.name = "the lab": is not a name; allowed is 1 to 128 letters, digits and . _ - : /"#,
        ),
        (
            "name = \"lab\"",
            "run_directory = \"run/postern\"",
            r#"gateway.run_directory = "run/postern": is not an absolute path such as /run/postern"#,
        ),
        (
            "name = \"lab\"",
            "control_socket = \"postern.sock\"",
            r#"gateway.control_socket = "postern.sock": is not an absolute path such as /run/postern"#,
        ),
        (
            "name = \"lab\"",
            "metrics = \"9464\"",
            r#"gateway.metrics = "9464": is not an address and port such as 127.0.0.1:9464"#,
        ),
        (
            "name = \"lab\"",
            "metrics = \"0.0.0.0:9464\"",
            r#"gateway.metrics = "0.0.0.0:9464": is not a loopback address; allowed is 127.0.0.0/8 or ::1, or any with metrics_public = true"#,
        ),
        ("[gateway]", "[workers]\ncount = 0\n[gateway]", r#"workers.count = 0: is out of range; allowed is 1 to 64"#),
        ("[gateway]", "[workers]\ncount = 65\n[gateway]", r#"workers.count = 65: is out of range; allowed is 1 to 64"#),
        (
            "[gateway]",
            "[workers]\ncpus = [1, 2]\n[gateway]",
            r#"workers.cpus = [1, 2]: has 2 entries; allowed is 1, one for each worker"#,
        ),
        (
            "[gateway]",
            "[workers]\ncpus = [-1]\n[gateway]",
            r#"workers.cpus[0] = -1: is out of range; allowed is 0 to 4095"#,
        ),
        (
            "[gateway]",
            "[workers]\ncount = 2\ncpus = [1, 1]\npolling = \"spin\"\n[gateway]",
            r#"workers.cpus[1] = 1: has CPU 1 twice with polling = "spin"; allowed is a CPU of its own for each spinning worker"#,
        ),
        (
            "[gateway]",
            "[workers]\nflows = 1000\n[gateway]",
            r#"workers.flows = 1000: is out of range; allowed is 1024 to 16777216 flows for each worker"#,
        ),
        (
            "[gateway]",
            "[workers]\nipv6_flows = 1000\n[gateway]",
            r#"workers.ipv6_flows = 1000: is out of range; allowed is 1024 to 16777216 IPv6 flows for each worker, or 0 for none"#,
        ),
        (
            "[gateway]",
            "[selection]\nkey = \"+123456789abcdef0123456789abcdef\"\n[gateway]",
            r#"selection.key = "+123456789abcdef0123456789abcdef": is not a key of 32 hexadecimal digits"#,
        ),
        (
            "[gateway]",
            "[selection]\nkey = \"0123\"\n[gateway]",
            r#"selection.key = "0123": is not a key of 32 hexadecimal digits"#,
        ),
        (
            "[gateway]",
            "[limits]\nendpoints = 1\n[gateway]",
            r#"limits.endpoints = 1: 2 are declared, but this process has room for 1; raise limits.endpoints and restart"#,
        ),
        (
            "[gateway]",
            "[limits]\ntargets = 16777217\n[gateway]",
            r#"limits.targets = 16777217: is out of range; allowed is 1 to 16777216"#,
        ),
    ]);
}

#[test]
fn ports_and_attachments_are_checked() {
    each_says(&[
        (
            "interface = \"trunk\"",
            "",
            r#"port[1].interface = "": is required; allowed is the name of an interface, 1 to 15 bytes without blanks, / and :
            attachment[1].port = "trunk": is not the name of a declared port; declared are "consumer-a"
            attachment[2].port = "trunk": is not the name of a declared port; declared are "consumer-a""#,
        ),
        (
            "interface = \"trunk\"",
            "interface = \"sixteen-bytes-ab\"",
            r#"port[1].interface = "sixteen-bytes-ab": is not the name of an interface, 1 to 15 bytes without blanks, / and :
            attachment[1].port = "trunk": is not the name of a declared port; declared are "consumer-a", "sixteen-bytes-ab"
            attachment[2].port = "trunk": is not the name of a declared port; declared are "consumer-a", "sixteen-bytes-ab""#,
        ),
        (
            "interface = \"trunk\"",
            "interface = \"a/b\"",
            r#"port[1].interface = "a/b": is not the name of an interface, 1 to 15 bytes without blanks, / and :
            attachment[1].port = "trunk": is not the name of a declared port; declared are "consumer-a", "a/b"
            attachment[2].port = "trunk": is not the name of a declared port; declared are "consumer-a", "a/b""#,
        ),
        (
            "id = \"vpc-b\"",
            "id = \"vpc-a\"",
            r#"vpc[1].id = "vpc-a": is already used by vpc[0].id; each may be used once
            attachment[1].vpc = "vpc-b": is not the name of a declared VPC; declared are "vpc-a", "vpc-provider"
            endpoint[1].vpc = "vpc-b": is not the name of a declared VPC; declared are "vpc-a", "vpc-provider""#,
        ),
        (
            "id = \"vpc-a\"",
            "id = \"vpc-A\"",
            r#"vpc[0].id = "vpc-A": is not an identifier of its kind; allowed is vpc- and 1 to 64 of a-z, 0-9 and -, such as vpc-0123456789abcdef0
            attachment[0].vpc = "vpc-a": is not the name of a declared VPC; declared are "vpc-A", "vpc-b", "vpc-provider"
            endpoint[0].vpc = "vpc-a": is not the name of a declared VPC; declared are "vpc-A", "vpc-b", "vpc-provider""#,
        ),
        (
            "name = \"b\"",
            "name = \"a\"",
            r#"attachment[1].name = "a": is already used by attachment[0].name; each may be used once"#,
        ),
        (
            "name = \"b\"",
            "",
            r#"attachment[1].name = "": is required; allowed is 1 to 128 letters, digits and . _ - : /"#,
        ),
        (
            "port = \"consumer-a\"",
            "port = \"consumer-c\"",
            r#"attachment[0].port = "consumer-c": is not the name of a declared port; declared are "consumer-a", "trunk""#,
        ),
        (
            "port = \"trunk\"\nvlan = 20",
            "port = \"trunk\"",
            r#"attachment[2].port = "trunk": is already used by attachment[1].port for untagged frames; each may be used once"#,
        ),
        ("vlan = 20", "vlan = 0", r#"attachment[1].vlan = 0: is out of range; allowed is 1 to 4094"#),
        ("vlan = 20", "vlan = 4095", r#"attachment[1].vlan = 4095: is out of range; allowed is 1 to 4094"#),
        (
            "vlan = 20",
            "vlan = 20\nmtu = 575",
            r#"attachment[1].mtu = 575: is out of range; allowed is 576 to 65535 bytes"#,
        ),
        (
            "vlan = 20",
            "vlan = 20\nmac = \"01:00:5e:00:00:01\"",
            r#"attachment[1].mac = "01:00:5e:00:00:01": is not a unicast MAC address such as 02:00:00:00:00:01"#,
        ),
        (
            "[\"10.0.0.0/24\"]",
            "[\"10.0.0.1/24\"]",
            r#"attachment[0].prefixes[0] = "10.0.0.1/24": is not a network address, because host bits are set; the network is 10.0.0.0/24"#,
        ),
        (
            "[\"10.0.0.0/24\"]",
            "[\"10.0.0.0\"]",
            r#"attachment[0].prefixes[0] = "10.0.0.0": is not an IP prefix such as 10.0.0.0/24 or 2001:db8::/64"#,
        ),
        (
            "[\"10.0.0.0/24\"]",
            "[\"10.0.0.0/24\", \"10.0.0.0/24\"]",
            r#"attachment[0].prefixes[1] = "10.0.0.0/24": is already used by attachment[0].prefixes[0]; each may be used once"#,
        ),
    ]);
}

#[test]
fn routes_are_checked() {
    each_says(&[
        (
            "attachment = \"provider\"",
            "attachment = \"porvider\"",
            r#"route[0].attachment = "porvider": is not the name of a declared attachment; declared are "a", "b", "provider""#,
        ),
        (
            "destination = \"0.0.0.0/0\"",
            "destination = \"192.168.0.0/24\"",
            r#"route[0].destination = "192.168.0.0/24": is already used by attachment[2].prefixes[0]; each may be used once"#,
        ),
        (
            "destination = \"0.0.0.0/0\"",
            "destination = \"default\"",
            r#"route[0].destination = "default": is not an IP prefix such as 10.0.0.0/24 or 2001:db8::/64"#,
        ),
        (
            "destination = \"0.0.0.0/0\"\n",
            "",
            r#"route[0].destination = "": is required; allowed is an IP prefix such as 10.0.0.0/24 or 2001:db8::/64"#,
        ),
        (
            "via = \"192.168.0.1\"",
            "via = \"192.168.1.1\"",
            r#"route[0].via = "192.168.1.1": is not in an on-link prefix of attachment "provider" (192.168.0.0/24); a router must be a neighbour"#,
        ),
        (
            "via = \"192.168.0.1\"",
            "via = \"192.168.0.255\"",
            r#"route[0].via = "192.168.0.255": is the broadcast address 192.168.0.255 of 192.168.0.0/24; allowed is a unicast address of the VPC"#,
        ),
        (
            "via = \"192.168.0.1\"",
            "via = \"192.168.0.250\"",
            r#"snat_pool[0].addresses[0] = "192.168.0.250": is already used by a [[route]]'s via; each may be used once"#,
        ),
        (
            "via = \"192.168.0.1\"",
            "via = \"router\"",
            r#"route[0].via = "router": is not an IP address such as 10.0.0.10 or 2001:db8::10"#,
        ),
        (
            "destination = \"0.0.0.0/0\"",
            "destination = \"10.0.0.0/8\"",
            r#"target_group[0].target[2].address = "172.16.0.13": has no route in VPC vpc-provider; allowed is an address in an attachment's prefixes or behind a [[route]]"#,
        ),
    ]);
}

#[test]
fn pools_groups_and_targets_are_checked() {
    let pool = "name = \"pool\"";
    each_says(&[
        (
            pool,
            "name = \"pool\"\nports = \"80-1024\"",
            r#"snat_pool[0].ports = "80-1024": is not a range of ports; allowed is FIRST-LAST within 1024-65535"#,
        ),
        (
            pool,
            "name = \"pool\"\nports = \"5000-4000\"",
            r#"snat_pool[0].ports = "5000-4000": is not a range of ports; allowed is FIRST-LAST within 1024-65535"#,
        ),
        (
            pool,
            "name = \"pool\"\nrest_seconds = 241",
            r#"snat_pool[0].rest_seconds = 241: is out of range; allowed is 0 to 240 seconds"#,
        ),
        (
            "\"192.168.0.251\"",
            "\"192.168.0.250\"",
            r#"snat_pool[0].addresses[1] = "192.168.0.250": is already used by snat_pool[0].addresses[0]; each may be used once"#,
        ),
        (
            "\"192.168.0.251\"",
            "\"192.168.0.0\"",
            r#"snat_pool[0].addresses[1] = "192.168.0.0": is the network address 192.168.0.0 of 192.168.0.0/24; allowed is a unicast address of the VPC"#,
        ),
        (
            "\"192.168.0.251\"",
            "\"192.168.0.11\"",
            r#"target_group[0].target[1].address = "192.168.0.11": is already used by snat_pool[0].addresses[1]; each may be used once"#,
        ),
        (
            "snat_pool = \"pool\"",
            "snat_pool = \"poll\"",
            r#"target_group[0].snat_pool = "poll": is not the name of a declared snat_pool; declared are "pool""#,
        ),
        (
            "vpc = \"vpc-provider\"\nsnat_pool",
            "vpc = \"vpc-nobody\"\nsnat_pool",
            r#"target_group[0].vpc = "vpc-nobody": is not the name of a declared VPC; declared are "vpc-a", "vpc-b", "vpc-provider""#,
        ),
        (
            "snat_pool = \"pool\"",
            "snat_pool = \"pool\"\nslots = 16384",
            r#"target_group[0].slots = 16384: is not a number of slots; allowed is 16381 or 65537"#,
        ),
        ("port = 8080", "port = 0", r#"target_group[0].target[0].port = 0: is out of range; allowed is 1 to 65535"#),
        (
            "port = 8080",
            "port = 65536",
            r#"target_group[0].target[0].port = 65536: is out of range; allowed is 1 to 65535"#,
        ),
        (
            "port = 8080",
            "port = 8080\nweight = 1000",
            r#"target_group[0].target[0].weight = 1000: is out of range; allowed is 0 to 999"#,
        ),
        (
            "address = \"192.168.0.12\"",
            "address = \"192.168.0.11\"",
            r#"target_group[0].target[1].address = "192.168.0.11": is already used by target_group[0].target[0].address with the same port; each may be used once"#,
        ),
        (
            "address = \"192.168.0.12\"",
            "",
            r#"target_group[0].target[0].address = "": is required; allowed is an IP address such as 10.0.0.10 or 2001:db8::10"#,
        ),
        (
            "address = \"192.168.0.12\"",
            "address = \"127.0.0.1\"",
            r#"target_group[0].target[0].address = "127.0.0.1": is a loopback address; allowed is a unicast address of the VPC"#,
        ),
    ]);
}

#[test]
fn health_checks_are_checked() {
    let check = |text: &'static str| -> &'static str {
        // Leaked: the cases are few and borrow for the whole test.
        String::leak(format!("[[target_group]]\n{text}\n"))
    };
    let group = "[[target_group]]\n";
    each_says(&[
        (
            group,
            check("health_check = { protocol = \"http\", path = \"health\", matcher = \"100-399\" }"),
            r#"target_group[0].health_check.path = "health": is not a path; allowed is / and up to 1023 printable ASCII characters without blanks
               target_group[0].health_check.matcher = "100-399": is not a list of status codes; allowed are codes and ranges within 200-599, such as 200-399 or 200,204"#,
        ),
        (
            group,
            check("health_check = { path = \"/\", matcher = \"200\" }"),
            r#"target_group[0].health_check.path = "/": is for health checks with protocol = "http" or "https" only; leave it out with "tcp"
               target_group[0].health_check.matcher = "200": is for health checks with protocol = "http" or "https" only; leave it out with "tcp""#,
        ),
        (
            group,
            check(
                "health_check = { port = 0, interval_seconds = 4, timeout_seconds = 1, healthy_threshold = 11, unhealthy_threshold = 1 }",
            ),
            "target_group[0].health_check.port = 0: is out of range; allowed is 1 to 65535
             target_group[0].health_check.interval_seconds = 4: is out of range; allowed is 5 to 300 seconds
             target_group[0].health_check.timeout_seconds = 1: is out of range; allowed is 2 to 120 seconds
             target_group[0].health_check.healthy_threshold = 11: is out of range; allowed is 2 to 10 passes
             target_group[0].health_check.unhealthy_threshold = 1: is out of range; allowed is 2 to 10 failures",
        ),
        (
            group,
            check("unhealthy_drain_seconds = 360001\nderegistration_delay_seconds = -1"),
            "target_group[0].unhealthy_drain_seconds = 360001: is out of range; allowed is 0 to 360000 seconds
             target_group[0].deregistration_delay_seconds = -1: is out of range; allowed is 0 to 3600 seconds",
        ),
    ]);
}

#[test]
fn a_group_in_another_vpc_than_its_pool_is_refused() {
    let text = lab("vpc = \"vpc-provider\"\nsnat_pool", "vpc = \"vpc-a\"\nsnat_pool");
    let said = errors(&text).to_string();
    assert!(
        said.starts_with(
            "lab.toml: target_group[0].snat_pool = \"pool\": is in VPC vpc-provider, but the group \"web\" is in VPC vpc-a; \
             both must be in one VPC"
        ),
        "{said}"
    );
}

#[test]
fn listeners_services_and_endpoints_are_checked() {
    each_says(&[
        (
            "port = 53",
            "port = 70000",
            r#"load_balancer[0].listener[0].port = 70000: is out of range; allowed is 1 to 65535"#,
        ),
        (
            "protocol = \"udp\"\nport = 53",
            "port = 80",
            r#"load_balancer[0].listener[1].port = 80: gives tcp port 80 of the load balancer to a second listener; the first is load_balancer[0].listener[0].port"#,
        ),
        (
            "port = 53",
            "port = 53\nidle_seconds = 9",
            r#"load_balancer[0].listener[0].idle_seconds = 9: is out of range; allowed is 10 to 6000 seconds for UDP"#,
        ),
        (
            "mss = 1400",
            "idle_seconds = 59",
            r#"load_balancer[0].listener[1].idle_seconds = 59: is out of range; allowed is 60 to 6000 seconds for TCP"#,
        ),
        (
            "port = 53",
            "port = 53\nmss = 1400",
            r#"load_balancer[0].listener[0].mss = 1400: is for TCP listeners only; leave it out of a UDP listener"#,
        ),
        (
            "port = 53",
            "port = 53\nreset_on_expiry = true",
            r#"load_balancer[0].listener[0].reset_on_expiry = "true": is for TCP listeners only; leave it out of a UDP listener"#,
        ),
        (
            "mss = 1400",
            "mss = 87",
            r#"load_balancer[0].listener[1].mss = 87: is out of range; allowed is 88 to 65495 bytes"#,
        ),
        (
            "weight = 10",
            "weight = -1",
            r#"load_balancer[0].listener[1].target_groups[0].weight = -1: is out of range; allowed is 0 to 999"#,
        ),
        (
            "{ name = \"web\", weight = 10 }",
            "",
            r#"load_balancer[0].listener[1].target_groups = "": is required; allowed is at least one { name = "…", weight = … }"#,
        ),
        (
            "{ name = \"web\", weight = 10 }",
            "{ name = \"web\" }, { name = \"web\" }",
            r#"load_balancer[0].listener[1].target_groups[1].name = "web": is already used by load_balancer[0].listener[1].target_groups[0].name; each may be used once"#,
        ),
        (
            "{ name = \"web\", weight = 10 }",
            "{ name = \"wob\" }",
            r#"load_balancer[0].listener[1].target_groups[0].name = "wob": is not the name of a declared target_group; declared are "web""#,
        ),
        (
            "load_balancers = [\"balancer\"]",
            "load_balancers = [\"blancer\"]",
            r#"service[0].load_balancers[0] = "blancer": is not the name of a declared load_balancer; declared are "balancer""#,
        ),
        (
            "load_balancers = [\"balancer\"]",
            "load_balancers = [\"balancer\", \"balancer\"]",
            r#"service[0].load_balancers[1] = "balancer": is already used by service[0]; each may be used once"#,
        ),
        (
            "id = \"vpce-svc-web\"",
            "id = \"svc-web\"",
            r#"service[0].id = "svc-web": is not an identifier of its kind; allowed is vpce-svc- and 1 to 64 of a-z, 0-9 and -, such as vpce-svc-0123456789abcdef0
            endpoint[0].service = "vpce-svc-web": is not the name of a declared service; declared are "svc-web"
            endpoint[1].service = "vpce-svc-web": is not the name of a declared service; declared are "svc-web""#,
        ),
        (
            "id = \"vpce-0a\"",
            "id = \"vpce-svc-0a\"",
            r#"endpoint[0].id = "vpce-svc-0a": is not an identifier of its kind; allowed is vpce- (not vpce-svc-) and 1 to 64 of a-z, 0-9 and -, such as vpce-0123456789abcdef0"#,
        ),
        (
            "id = \"vpce-0b\"",
            "id = \"vpce-0a\"",
            r#"endpoint[1].id = "vpce-0a": is already used by endpoint[0].id; each may be used once"#,
        ),
        (
            "service = \"vpce-svc-web\"",
            "service = \"vpce-svc-wob\"",
            r#"endpoint[0].service = "vpce-svc-wob": is not the name of a declared service; declared are "vpce-svc-web""#,
        ),
        (
            "addresses = [\"10.0.0.10\"]",
            "addresses = []",
            r#"endpoint[0].addresses = "": is required; allowed is at least one address of the consumer's VPC"#,
        ),
        (
            "addresses = [\"10.0.0.10\"]",
            "addresses = [\"10.0.0.10\", \"10.0.0.10\"]",
            r#"endpoint[0].addresses[1] = "10.0.0.10": is already used by endpoint[0].addresses[0]; each may be used once"#,
        ),
        (
            "addresses = [\"10.0.0.10\"]",
            "addresses = [\"224.0.0.1\"]",
            r#"endpoint[0].addresses[0] = "224.0.0.1": is a multicast address; allowed is a unicast address of the VPC"#,
        ),
        (
            "addresses = [\"10.0.0.10\"]",
            "addresses = [\"10.0.0.255\"]",
            r#"endpoint[0].addresses[0] = "10.0.0.255": is the broadcast address 10.0.0.255 of 10.0.0.0/24; allowed is a unicast address of the VPC"#,
        ),
        (
            "addresses = [\"10.0.0.10\"]",
            "addresses = [\"10.0.0.256\"]",
            r#"endpoint[0].addresses[0] = "10.0.0.256": is not an IP address such as 10.0.0.10 or 2001:db8::10"#,
        ),
        (
            "addresses = [\"10.0.0.10\"]",
            "addresses = [\"10.0.0.10\"]\nmtu = 100",
            r#"endpoint[0].mtu = 100: is out of range; allowed is 576 to 65535 bytes"#,
        ),
    ]);
}

#[test]
fn two_load_balancers_of_a_service_with_one_listener_port_are_refused() {
    let second = "[[load_balancer]]\nname = \"second\"\n[[load_balancer.listener]]\nport = 80\n\
                  target_groups = [{ name = \"web\" }]\n[[service]]";
    let text = lab("[[service]]", second).replacen("[\"balancer\"]", "[\"balancer\", \"second\"]", 1);
    assert_eq!(
        errors(&text).to_string(),
        "lab.toml: service[0].load_balancers[1] = \"second\": gives tcp port 80 of the service to a second listener; \
         the first is load_balancer[0].listener[1].port"
    );
}

#[test]
fn a_vpc_without_attachment_has_no_endpoint_and_no_pool() {
    let text = lab("id = \"vpc-b\"", "id = \"vpc-b\"\n[[vpc]]\nid = \"vpc-c\"")
        .replacen("vpc = \"vpc-b\"\nservice", "vpc = \"vpc-c\"\nservice", 1)
        .replacen("vpc = \"vpc-provider\"\naddresses", "vpc = \"vpc-c\"\naddresses", 1);
    let keys: Vec<String> = errors(&text).iter().map(|error| format!("{} {}", error.key, error.problem)).collect();
    let unreachable = "has no attachment, so the gateway cannot reach it; declare an [[attachment]] with this vpc";
    assert_eq!(keys[0], format!("snat_pool[0].vpc {unreachable}"));
    assert_eq!(
        keys[1],
        "target_group[0].snat_pool is in VPC vpc-c, but the group \"web\" is in VPC vpc-provider; both must be in one VPC"
    );
    assert_eq!(keys[2], format!("endpoint[1].vpc {unreachable}"));
    assert_eq!(keys.len(), 3);
}

#[test]
fn an_address_off_link_is_allowed_with_a_warning() {
    let text = lab("addresses = [\"10.0.0.10\"]", "addresses = [\"10.7.0.10\"]");
    let checked = Declaration::from_toml(&text, "lab.toml").unwrap().check().unwrap();
    let warnings: Vec<String> = checked.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "lab.toml: endpoint[0].addresses[0] = \"10.7.0.10\": is in no on-link prefix of VPC vpc-a, so no neighbour asks \
         for it; it works only if a router sends it to the gateway"
        ]
    );
}

#[test]
fn all_mistakes_are_named_at_once_and_a_hundred_are_printed() {
    let mut text = lab("vlan = 20", "vlan = 5000").replacen("port = 53", "port = 0", 1);
    assert_eq!(errors(&text).iter().count(), 2);
    for id in 0..150 {
        text.push_str(&format!("\n[[vpc]]\nid = \"VPC {id}\""));
    }
    let all = errors(&text);
    assert_eq!(all.iter().count(), 152);
    let printed = all.to_string();
    assert_eq!(printed.lines().count(), Errors::SHOWN + 1);
    assert!(printed.ends_with("\n… and 52 more"), "{printed}");
}

#[test]
fn a_hostile_value_does_not_break_the_line_or_fill_it() {
    let text = lab("name = \"b\"", &format!("name = \"a\\u001b[2J\\n{}\"", "b".repeat(1000)));
    let said = errors(&text).to_string();
    assert_eq!(said.lines().count(), 1);
    assert!(said.contains("\\u{1b}[2J\\n") && said.contains('…') && said.len() < 300, "{said}");
}

#[test]
fn an_empty_file_asks_for_a_port() {
    assert_eq!(
        errors("").to_string(),
        "lab.toml: port = \"\": is required; allowed is at least one [[port]] with an interface"
    );
}

fn reload(old: &str, new: &str) -> Result<(), String> {
    let check = |text: &str| Declaration::from_toml(text, "lab.toml").unwrap().check().unwrap();
    check(&lab(old, new)).reload(&check(LAB)).map(drop).map_err(|errors| errors.to_string())
}

#[test]
fn a_reload_that_needs_a_restart_says_which_key_does() {
    let cases = [
        (
            "name = \"lab\"",
            "name = \"other\"",
            "gateway.name = \"other\": was \"lab\" when this process started; changing it needs a restart",
        ),
        (
            "[gateway]",
            "[workers]\ncount = 2\npolling = \"sleep\"\n[gateway]",
            "workers.count = 2: was 1 when this process started; changing it needs a restart\n\
             lab.toml: workers.polling = \"sleep\": was \"adaptive\" when this process started; changing it needs a restart",
        ),
        (
            "[gateway]",
            "[limits]\ntargets = 5000\n[gateway]",
            "limits.targets = 5000: was 4096 when this process started; changing it needs a restart",
        ),
        (
            "interface = \"trunk\"",
            "interface = \"trunk\"\nmode = \"own\"",
            "port = consumer-a (own, af_packet), trunk (own, af_packet): \
             was consumer-a (own, af_packet), trunk (shared, af_packet) when this process started; \
             changing it needs a restart",
        ),
        (
            "[gateway]\nname = \"lab\"\n\n[[port]]",
            "[gateway]\nname = \"lab\"\nio = \"af_xdp\"\n\n[[port]]\nio = \"io_uring\"",
            "port = consumer-a (own, io_uring), trunk (shared, af_xdp): \
             was consumer-a (own, af_packet), trunk (shared, af_packet) when this process started; \
             changing it needs a restart",
        ),
    ];
    for (old, new, expected) in cases {
        assert_eq!(reload(old, new), Err(format!("lab.toml: {expected}")));
    }
    assert_eq!(reload("vlan = 20", "vlan = 21"), Ok(()));
}

#[test]
fn a_reload_beyond_the_room_of_the_process_is_refused() {
    let check = |text: &str| Declaration::from_toml(text, "lab.toml").unwrap().check().unwrap();
    let small = check(&lab("[gateway]", "[limits]\nendpoints = 2\n[gateway]"));
    let endpoint = "[[endpoint]]\nid = \"vpce-0c\"\nvpc = \"vpc-a\"\nservice = \"vpce-svc-web\"\n\
                    addresses = [\"10.0.0.11\"]\n[[endpoint]]";
    let errors = check(&lab("[[endpoint]]", endpoint)).reload(&small).unwrap_err();
    assert_eq!(
        errors.to_string(),
        "lab.toml: limits.endpoints = 2: 3 are declared, but this process has room for 2; raise limits.endpoints and \
         restart"
    );
    assert_eq!(check(LAB).reload(&small).unwrap().limits.endpoints, 2);
}

#[test]
fn zones_port_ranges_mapped_ports_and_stickiness_that_make_no_sense_are_refused() {
    each_says(&[
        (
            "address = \"192.168.0.11\"\nport = 8080",
            "address = \"192.168.0.11\"\nport = 8080\nzone = \"A\"",
            r#"target_group[0].target[1].zone = "A": is not a zone; allowed is 1 to 64 of a-z, 0-9 and -"#,
        ),
        (
            "address = \"192.168.0.11\"\nport = 8080",
            "address = \"192.168.0.11\"\nport = 8080\nmapped_port = 0",
            r#"target_group[0].target[0].mapped_port = "": is required; allowed is 1 to 65535, because other targets of the group have one
            target_group[0].target[1].mapped_port = 0: is out of range; allowed is 1 to 65535
            target_group[0].target[2].mapped_port = "": is required; allowed is 1 to 65535, because other targets of the group have one"#,
        ),
        (
            "snat_pool = \"pool\"",
            "snat_pool = \"pool\"\nsticky_seconds = 604801",
            "target_group[0].sticky_seconds = 604801: is out of range; allowed is 1 to 604800 seconds",
        ),
        (
            "protocol = \"udp\"\nport = 53",
            "protocol = \"udp\"\nports = \"60-50\"",
            r#"load_balancer[0].listener[0].ports = "60-50": is not a range of ports; allowed is FIRST-LAST within 1-65535"#,
        ),
        (
            "protocol = \"udp\"\nport = 53",
            "protocol = \"tcp\"\nports = \"70-90\"",
            "load_balancer[0].listener[1].port = 80: gives tcp port 80 of the load balancer to a second listener; the first is load_balancer[0].listener[0].ports",
        ),
        (
            "addresses = [\"10.0.0.10\"]",
            "addresses = [\"10.0.0.10\"]\nzones = [\"a\", \"b\"]",
            r#"endpoint[0].zones = "a, b": is not 2 zones for 1 addresses; allowed is one for each"#,
        ),
    ]);
}
