//! Whatever control sends, a gateway takes the whole change or nothing of it, and does not panic. The input is a row of
//! updates as they stand in the protocol, each behind its length in two bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postern_push::Assembler;
use postern_push::proto::Update;
use postern_tables::{Declaration, Resource, Tables};
use prost::Message;

const PROCESS: &str = "
[gateway]
name = \"fuzz\"
[limits]
endpoints = 64
targets = 64
[control]
address = \"http://localhost:1\"
token_file = \"/token\"
[[port]]
interface = \"eth0\"
[[port]]
interface = \"eth1\"
";

/// What is declared, as text: what a refused change must not move.
fn declared(tables: &Tables) -> Vec<Resource> {
    tables.resources().collect()
}

fuzz_target!(|input: &[u8]| {
    let process = Declaration::from_toml(PROCESS, "fuzz.toml").and_then(Declaration::check);
    let mut tables = Tables::new(&process.expect("the process part is right"));
    let mut assembler = Assembler::default();
    let mut rest = input;
    while let Some((length, behind)) = rest.split_first_chunk::<2>() {
        let (message, behind) = behind.split_at(usize::from(u16::from_be_bytes(*length)).min(behind.len()));
        rest = behind;
        let Ok(part) = Update::decode(message) else { continue };
        let Ok(Some(update)) = assembler.add(part) else { continue };
        let (before, generation) = (declared(&tables), tables.snapshot().generation);
        match tables.update(update.change) {
            Err(errors) => {
                assert!(errors.iter().count() > 0 && !errors.to_string().is_empty());
                assert_eq!((declared(&tables), tables.snapshot().generation), (before, generation), "half applied");
            }
            Ok(snapshot) => {
                assert!(snapshot.generation >= generation);
                // What is declared can be sent and taken anew.
                let again = postern_tables::Change { full: true, changed: declared(&tables), removed: Vec::new() };
                assert_eq!(tables.update(again).expect("what was taken is right").generation, snapshot.generation);
            }
        }
    }
});
