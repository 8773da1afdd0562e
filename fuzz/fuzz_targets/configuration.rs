//! Whatever a configuration file holds, reading and checking it does not panic; what passes the checks compiles; and
//! what was read can be written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postern_tables::{Declaration, compile};

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let declaration = match Declaration::from_toml(text, "fuzz.toml") {
        Ok(declaration) => declaration,
        Err(errors) => {
            assert!(!errors.to_string().is_empty());
            return;
        }
    };
    assert_eq!(Declaration::from_toml(&declaration.to_toml(), "fuzz.toml").as_ref(), Ok(&declaration));
    match declaration.check() {
        Err(errors) => assert!(errors.iter().count() > 0 && !errors.to_string().is_empty()),
        Ok(checked) => {
            let first = compile(&checked, None);
            let again = compile(&checked, Some(&first));
            assert_eq!(first.endpoints, again.endpoints);
            assert_eq!(first.targets, again.targets);
        }
    }
});
