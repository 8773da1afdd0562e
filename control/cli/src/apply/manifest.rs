//! The files of `postern apply`.
//!
//! A file holds tables named by kind (`[[vpc]]`, `[[target_group]]` …). `name` and `tags` are the object's, every other key
//! is a field of its spec. References are names of the owner's own objects, in any of the files, or ids.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use postern_control::catalog::model::{self, Kind};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// An object as it is to be.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Manifest {
    kind: Kind,
    name: String,
    tags: BTreeMap<String, String>,
    spec: Value,
}

/// Why files cannot be applied. Nothing was sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum ManifestError {
    #[error("cannot read {file}: {source}")]
    File { file: PathBuf, source: io::Error },
    #[error("{0} holds no file whose name ends with .toml")]
    Empty(PathBuf),
    #[error("{file}: {source}")]
    Toml { file: PathBuf, source: Box<toml::de::Error> },
    #[error("{file}: there is no kind {word:?}; the kinds are {kinds}", kinds = kinds())]
    Kind { file: PathBuf, word: String },
    #[error("{file}: {word} is not a list of tables; write [[{word}]]")]
    NotAList { file: PathBuf, word: String },
    #[error("{file}: [[{word}]] number {number}{name}: {reason}", name = in_quotes(name))]
    Object { file: PathBuf, word: String, number: usize, name: String, reason: String },
    #[error("{kind} {name:?} is declared in {first} and again in {second}")]
    Twice { kind: Kind, name: String, first: PathBuf, second: PathBuf },
}

fn in_quotes(name: &str) -> String {
    if name.is_empty() { String::new() } else { format!(" ({name})") }
}

fn kinds() -> String {
    Kind::ALL.map(word).join(", ")
}

/// How a kind is written in a file.
fn word(kind: Kind) -> String {
    kind.to_string().replace('-', "_")
}

/// Reads files, and all `*.toml` of directories, in the order of their names.
pub(super) fn read(paths: &[PathBuf]) -> Result<Vec<Manifest>, ManifestError> {
    let mut manifests = Vec::new();
    let mut seen: BTreeMap<(Kind, String), PathBuf> = BTreeMap::new();
    for path in paths {
        for file in files(path)? {
            let text =
                fs::read_to_string(&file).map_err(|source| ManifestError::File { file: file.clone(), source })?;
            for manifest in parse(&text, &file)? {
                let key = (manifest.kind, manifest.name.clone());
                if let Some(first) = seen.insert(key, file.clone()) {
                    let Manifest { kind, name, .. } = manifest;
                    return Err(ManifestError::Twice { kind, name, first, second: file });
                }
                manifests.push(manifest);
            }
        }
    }
    Ok(manifests)
}

fn files(path: &Path) -> Result<Vec<PathBuf>, ManifestError> {
    let failed = |source| ManifestError::File { file: path.to_owned(), source };
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        if file.extension().is_some_and(|extension| extension == "toml") && file.is_file() {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(ManifestError::Empty(path.to_owned()));
    }
    files.sort();
    Ok(files)
}

/// The objects of a file, each checked to have only fields that there are, of their types.
fn parse(text: &str, file: &Path) -> Result<Vec<Manifest>, ManifestError> {
    let document: toml::Table = toml::from_str(text)
        .map_err(|source| ManifestError::Toml { file: file.to_owned(), source: Box::new(source) })?;
    let mut manifests = Vec::new();
    for (key, value) in document {
        let Some(kind) = Kind::ALL.into_iter().find(|kind| word(*kind) == key) else {
            return Err(ManifestError::Kind { file: file.to_owned(), word: key });
        };
        let tables = match value {
            toml::Value::Array(items) => items.into_iter().map(|item| match item {
                toml::Value::Table(table) => Some(table),
                _ => None,
            }),
            _ => return Err(ManifestError::NotAList { file: file.to_owned(), word: key }),
        };
        let Some(tables) = tables.collect::<Option<Vec<_>>>() else {
            return Err(ManifestError::NotAList { file: file.to_owned(), word: key });
        };
        for (at, table) in tables.into_iter().enumerate() {
            let name = table.get("name").and_then(toml::Value::as_str).unwrap_or_default().to_owned();
            let manifest = object(kind, table).map_err(|reason| {
                let (file, word, number) = (file.to_owned(), key.clone(), at + 1);
                ManifestError::Object { file, word, number, name, reason }
            })?;
            manifests.push(manifest);
        }
    }
    Ok(manifests)
}

fn object(kind: Kind, mut table: toml::Table) -> Result<Manifest, String> {
    let name = match table.remove("name") {
        Some(toml::Value::String(name)) if !name.is_empty() => name,
        Some(other) => return Err(format!("name = {other} is not a name")),
        None => return Err("it has no name".to_owned()),
    };
    let tags = match table.remove("tags") {
        None => BTreeMap::new(),
        Some(tags) => tags.try_into().map_err(|error| format!("tags: {error}"))?,
    };
    let spec = serde_json::to_value(table).map_err(|error| error.to_string())?;
    let checked = match kind {
        Kind::Principal => check::<model::PrincipalSpec>(&spec),
        Kind::Gateway => check::<model::GatewaySpec>(&spec),
        Kind::Vpc => check::<model::VpcSpec>(&spec),
        Kind::Attachment => check::<model::AttachmentSpec>(&spec),
        Kind::SnatPool => check::<model::SnatPoolSpec>(&spec),
        Kind::TargetGroup => check::<model::TargetGroupSpec>(&spec),
        Kind::LoadBalancer => check::<model::LoadBalancerSpec>(&spec),
        Kind::Service => check::<model::ServiceSpec>(&spec),
        Kind::Endpoint => check::<model::EndpointSpec>(&spec),
        Kind::SecurityGroup => check::<model::SecurityGroupSpec>(&spec),
    };
    checked.map(|()| Manifest { kind, name, tags, spec })
}

/// Whether a spec is one of its kind.
fn check<Spec: DeserializeOwned>(spec: &Value) -> Result<(), String> {
    Spec::deserialize(spec).map(drop).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(text: &str) -> String {
        parse(text, Path::new("web.toml")).unwrap_err().to_string()
    }

    #[test]
    fn the_example_is_read_whole_and_has_every_kind() {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/apply-example.toml");
        let manifests = read(&[example]).unwrap();
        for kind in Kind::ALL {
            assert!(manifests.iter().any(|manifest| manifest.kind == kind), "no {kind} in the example");
        }
        let endpoint = manifests.iter().find(|manifest| manifest.kind == Kind::Endpoint).unwrap();
        assert!(endpoint.spec.get("name").is_none() && endpoint.spec.get("tags").is_none());
    }

    #[test]
    fn name_and_tags_are_the_objects_and_the_rest_is_its_spec() {
        let text = "[[vpc]]\nname = \"a\"\ntags = { team = \"x\" }\nprefixes = [\"10.0.0.0/24\"]\n[[snat_pool]]\n\
                    name = \"p\"\nvpc = \"a\"\n";
        let manifests = parse(text, Path::new("web.toml")).unwrap();
        let vpc = manifests.iter().find(|manifest| manifest.kind == Kind::Vpc).unwrap();
        let expected =
            json!({ "kind": "vpc", "name": "a", "tags": { "team": "x" }, "spec": { "prefixes": ["10.0.0.0/24"] } });
        assert_eq!(serde_json::to_value(vpc).unwrap(), expected);
        assert_eq!(manifests.len(), 2);
    }

    #[test]
    fn a_mistake_is_named_with_its_file_and_object_before_anything_is_sent() {
        for (text, words) in [
            ("[[vpc]\n", &["web.toml", "line 1"][..]),
            ("[[vpcs]]\nname = \"a\"\n", &["web.toml", "\"vpcs\"", "security_group"]),
            ("[vpc]\nname = \"a\"\n", &["web.toml", "[[vpc]]"]),
            ("vpc = [1]\n", &["web.toml", "[[vpc]]"]),
            ("[[vpc]]\nprefixes = []\n", &["[[vpc]] number 1", "no name"]),
            ("[[vpc]]\nname = 7\n", &["number 1", "7"]),
            (
                "[[vpc]]\nname = \"a\"\n[[vpc]]\nname = \"b\"\nprefix = \"x\"\n",
                &["number 2 (b)", "`prefix`", "`prefixes`"],
            ),
            ("[[vpc]]\nname = \"a\"\ntags = { a = 1 }\n", &["(a)", "tags"]),
            ("[[attachment]]\nname = \"a\"\nvlan = 70000\n", &["(a)", "70000"]),
            ("[[load_balancer]]\nname = \"a\"\n[[load_balancer.listeners]]\nprot = \"tcp\"\n", &["(a)", "`prot`"]),
        ] {
            let error = refused(text);
            words.iter().for_each(|word| assert!(error.contains(word), "{word:?} is not in {error:?}"));
        }
    }

    #[test]
    fn a_directory_is_its_files_and_an_object_in_two_of_them_is_refused_with_both() {
        let directory = std::env::temp_dir().join(format!("postern-apply-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let error = read(std::slice::from_ref(&directory)).unwrap_err().to_string();
        assert!(error.contains(".toml"), "{error}");
        fs::write(directory.join("b.toml"), "[[vpc]]\nname = \"b\"\n").unwrap();
        fs::write(directory.join("a.toml"), "[[vpc]]\nname = \"a\"\n").unwrap();
        fs::write(directory.join("notes.txt"), "no TOML").unwrap();
        let names: Vec<_> = read(std::slice::from_ref(&directory)).unwrap();
        assert_eq!(names.iter().map(|manifest| manifest.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        fs::write(directory.join("c.toml"), "[[vpc]]\nname = \"a\"\n").unwrap();
        let error = read(std::slice::from_ref(&directory)).unwrap_err().to_string();
        assert!(error.contains("a.toml") && error.contains("c.toml"), "{error}");
        fs::remove_dir_all(&directory).unwrap();
        assert!(read(&[directory]).unwrap_err().to_string().contains("cannot read"));
    }
}
