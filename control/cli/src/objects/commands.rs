//! The commands as clap has them, made from what `kinds` says.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, value_parser};
use postern_control::catalog::model::Kind;
use serde_json::Value;

use super::action::Action;
use super::fields::{Field, Form, put};
use super::kinds::{about, fields, filters};
use crate::client::{EXIT_CODES, Options};

/// The targets of target groups have commands of their own.
const TARGET: &str = "target";
/// How long `--wait` waits, in seconds.
const WAIT: &str = "60";

/// The kind that the commands under a name are about.
pub(super) fn subject(name: &str) -> Option<Kind> {
    if name == TARGET {
        return Some(Kind::TargetGroup);
    }
    Kind::ALL.into_iter().find(|kind| kind.to_string() == name)
}

/// A command for each kind, and one for targets.
pub(super) fn all() -> impl Iterator<Item = Command> {
    let order = [
        Kind::Vpc,
        Kind::Attachment,
        Kind::SnatPool,
        Kind::TargetGroup,
        Kind::LoadBalancer,
        Kind::Service,
        Kind::Endpoint,
        Kind::SecurityGroup,
        Kind::Gateway,
        Kind::Principal,
    ];
    order.into_iter().map(of_kind).chain([of_targets()])
}

fn of_kind(kind: Kind) -> Command {
    let waits = kind == Kind::Endpoint;
    let command = common(Command::new(kind.to_string()).about(about(kind)))
        .subcommand(create(kind, waits))
        .subcommand(list(kind))
        .subcommand(Command::new("show").about("Show everything about one").arg(reference(kind)))
        .subcommand(update(kind, waits))
        .subcommand(delete(kind, waits));
    match kind {
        Kind::Service => command
            .subcommand(
                Command::new("connections").about("List who connects to a service").arg(reference(Kind::Service)),
            )
            .subcommand(
                with_wait(Command::new("accept").about("Accept a connection"))
                    .arg(reference(Kind::Service))
                    .arg(reference(Kind::Endpoint)),
            )
            .subcommand(
                Command::new("reject")
                    .about("Reject a connection, also one that was accepted: its flows end")
                    .arg(reference(Kind::Service))
                    .arg(reference(Kind::Endpoint))
                    .arg(Arg::new("reason").long("reason").value_name("SENTENCE").help("What the consumer is told")),
            ),
        Kind::Gateway => command
            .subcommand(
                with_wait(Command::new("drain").about("Move the addresses of a gateway to others"))
                    .arg(reference(Kind::Gateway)),
            )
            .subcommand(
                Command::new("undrain").about("Let a gateway hold addresses again").arg(reference(Kind::Gateway)),
            ),
        Kind::Principal => command
            .subcommand(
                Command::new("token")
                    .about("Make a token for a principal, and print it: it is shown this once")
                    .arg(reference(Kind::Principal)),
            )
            .subcommand(
                Command::new("tokens")
                    .about("List the tokens of a principal: their ids and age, not the tokens themselves")
                    .arg(reference(Kind::Principal)),
            )
            .subcommand(
                Command::new("revoke")
                    .about("Revoke tokens of a principal: who has one is nobody from now on; lists what is left")
                    .arg(reference(Kind::Principal))
                    .arg(
                        Arg::new("tokens")
                            .value_name("TOKEN-ID")
                            .help("As `principal tokens` lists them")
                            .required(true)
                            .num_args(1..),
                    ),
            ),
        _ => command,
    }
}

fn of_targets() -> Command {
    let targets = || {
        let help = "ADDRESS:PORT, and what else is to be said of it";
        Arg::new("targets").value_name(Form::Targets.placeholder()).help(help).required(true).num_args(1..)
    };
    common(Command::new(TARGET).about("Targets of a target group"))
        .subcommand(
            with_wait(Command::new("register").about("Add targets to a group, or change them"))
                .arg(reference(Kind::TargetGroup))
                .arg(targets()),
        )
        .subcommand(
            with_wait(Command::new("deregister").about("Take targets out of a group: they drain"))
                .arg(reference(Kind::TargetGroup))
                .arg(targets()),
        )
        .subcommand(
            Command::new("list")
                .about("List the targets of a group and their health")
                .arg(reference(Kind::TargetGroup)),
        )
}

/// What all have.
fn common(command: Command) -> Command {
    let command = command.subcommand_required(true).arg_required_else_help(true).after_help(EXIT_CODES);
    Options::augment_args(command)
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).global(true).help("Print JSON"))
}

fn with_wait(command: Command) -> Command {
    let help = "Return when it is so, or after so many seconds with an error";
    command.arg(
        Arg::new("wait")
            .long("wait")
            .value_name("SECONDS")
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value(WAIT)
            .value_parser(value_parser!(u64).range(1..=86_400))
            .help(help),
    )
}

fn reference(kind: Kind) -> Arg {
    let name = kind.to_string();
    let help = format!("Id of the {}, or its name among your own", name.replace('-', " "));
    Arg::new(name.clone()).value_name(name.to_uppercase()).help(help).required(true)
}

fn tags() -> Arg {
    let help = "A tag; may be said several times";
    Arg::new("tag").long("tag").value_name("KEY=VALUE").action(ArgAction::Append).help(help).value_parser(pair)
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not of the form KEY=VALUE")),
    }
}

fn if_version() -> Arg {
    let help = "Only if it still has this version";
    Arg::new("if-version").long("if-version").value_name("NUMBER").value_parser(value_parser!(u64)).help(help)
}

fn option(field: &Field) -> Arg {
    let form = field.form;
    let mut help = field.help.to_owned();
    if form.repeats() {
        help.push_str("; may be said several times");
    }
    let option = Arg::new(field.flag).long(field.flag).value_name(form.placeholder()).help(help);
    let option = match form {
        Form::Choice(words) => option.value_parser(words.to_vec()),
        Form::Switch => option
            .value_parser(["true", "false"])
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .hide_possible_values(true),
        _ => option.value_parser(move |text: &str| form.value(text).map(|_| text.to_owned())),
    };
    if form.repeats() { option.action(ArgAction::Append) } else { option }
}

fn create(kind: Kind, waits: bool) -> Command {
    let command = Command::new("create").about("Make one").arg(
        Arg::new("name").value_name("NAME").help("Its name, unique among your own: 1 to 128 of a-z, 0-9, - and ."),
    );
    let command = command.args(fields(kind).iter().map(|field| option(field).required(field.required)));
    let command = command.arg(tags()).args([
        Arg::new("owner").long("owner").value_name("PRINCIPAL").help("Whose it is to be; for operators"),
        Arg::new("idempotency-key")
            .long("idempotency-key")
            .value_name("KEY")
            .help("The same creation with the same key makes one object"),
    ]);
    if waits { with_wait(command) } else { command }
}

fn list(kind: Kind) -> Command {
    let filter = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    let command = Command::new("list")
        .about("List them")
        .args([filter("owner", "PRINCIPAL", "Only of this owner"), filter("name", "NAME", "Only of this name")]);
    let command = command.args(filters(kind).iter().map(|name| match *name {
        "state" => filter("state", "STATE", "Only in this state"),
        "service" => filter("service", "SERVICE", "Only of this service"),
        _ => filter("vpc", "VPC", "Only in this VPC"),
    }));
    command.arg(tags().help("Only with this tag; may be said several times")).arg(
        Arg::new("limit")
            .long("limit")
            .value_name("NUMBER")
            .help("Most objects to list; without: all")
            .value_parser(value_parser!(u64).range(1..)),
    )
}

fn update(kind: Kind, waits: bool) -> Command {
    let flags: Vec<&'static str> = fields(kind).iter().map(|field| field.flag).collect();
    let command = Command::new("update")
        .about("Change what is said, and keep the rest; a list that is said replaces the whole list")
        .arg(reference(kind))
        .args(fields(kind).iter().map(option))
        .arg(tags())
        .arg(if_version())
        .arg(
            Arg::new("untag")
                .long("untag")
                .value_name("KEY")
                .action(ArgAction::Append)
                .help("Remove a tag; may be said several times"),
        )
        .arg(
            Arg::new("unset")
                .long("unset")
                .value_name("OPTION")
                .action(ArgAction::Append)
                .value_parser(flags)
                .hide_possible_values(true)
                .help("Take back what this option had set; may be said several times"),
        );
    if waits { with_wait(command) } else { command }
}

fn delete(kind: Kind, waits: bool) -> Command {
    let command = Command::new("delete").about("Delete").arg(reference(kind).num_args(1..)).arg(if_version());
    if waits { with_wait(command) } else { command }
}

/// How long to wait.
pub(super) fn wait(matches: &ArgMatches) -> Option<Duration> {
    let seconds = matches.try_get_one::<u64>("wait").ok().flatten();
    seconds.copied().map(Duration::from_secs)
}

/// What a command that was typed asks for.
pub(super) fn action(subject: &str, kind: Kind, verb: &str, matches: &ArgMatches) -> Result<Action, clap::Error> {
    let one = |name: &str| matches.get_one::<String>(name).cloned().unwrap_or_default();
    let this = || one(&kind.to_string());
    let maybe = |name: &str| matches.get_one::<String>(name).cloned();
    let many = |name: &str| matches.get_many::<String>(name).into_iter().flatten().cloned().collect::<Vec<_>>();
    let tags = || matches.get_many::<(String, String)>("tag").into_iter().flatten().cloned();
    let version = || matches.get_one::<u64>("if-version").copied();
    Ok(match (subject, verb) {
        (TARGET, "register" | "deregister") => {
            let targets = many("targets").iter().map(|text| Form::Targets.value(text)).collect::<Result<_, _>>();
            let targets = targets.map_err(|words| clap::Error::raw(ErrorKind::ValueValidation, words + "\n"))?;
            Action::Targets { group: this(), register: verb == "register", targets }
        }
        (TARGET, _) => Action::ListTargets { group: this() },
        (_, "create") => {
            let mut spec = Value::Object(serde_json::Map::new());
            for (path, value) in values(kind, matches)? {
                put(&mut spec, path, value);
            }
            let (name, owner, key) = (maybe("name"), maybe("owner"), maybe("idempotency-key"));
            Action::Create { name, owner, tags: tags().collect(), spec, key }
        }
        (_, "list") => {
            let filters = ["owner", "name"].iter().chain(filters(kind));
            let filters = filters.filter_map(|name| Some(((*name).to_owned(), maybe(name)?)));
            let tags = tags().map(|(key, value)| (format!("tag.{key}"), value));
            Action::List { filters: filters.chain(tags).collect(), limit: matches.get_one::<u64>("limit").copied() }
        }
        (_, "show") => Action::Show { reference: this() },
        (_, "update") => Action::Update {
            reference: this(),
            set: values(kind, matches)?,
            unset: paths(kind, &many("unset")),
            tags: tags().collect::<BTreeMap<_, _>>(),
            untag: many("untag"),
            if_version: version(),
        },
        (_, "delete") => Action::Delete { references: many(&kind.to_string()), if_version: version() },
        (_, "connections") => Action::Connections { service: this() },
        (_, "accept") => Action::Accept { service: this(), endpoint: one("endpoint") },
        (_, "reject") => Action::Reject { service: this(), endpoint: one("endpoint"), reason: maybe("reason") },
        (_, "drain" | "undrain") => Action::Drain { gateway: this(), drained: verb == "drain" },
        (_, "token") => Action::Token { principal: this() },
        (_, "tokens") => Action::Tokens { principal: this() },
        (_, "revoke") => Action::Revoke { principal: this(), tokens: many("tokens") },
        _ => return Err(clap::Error::new(ErrorKind::InvalidSubcommand)),
    })
}

/// What was said of the fields.
fn values(kind: Kind, matches: &ArgMatches) -> Result<Vec<(&'static str, Value)>, clap::Error> {
    let mut values = Vec::new();
    for field in fields(kind) {
        let Some(texts) = matches.get_many::<String>(field.flag) else { continue };
        let items = texts.map(|text| field.form.value(text)).collect::<Result<Vec<_>, _>>();
        let items = items.map_err(|words| clap::Error::raw(ErrorKind::ValueValidation, words + "\n"))?;
        values.push((field.path, field.form.join(items)));
    }
    Ok(values)
}

fn paths(kind: Kind, flags: &[String]) -> Vec<&'static str> {
    fields(kind).iter().filter(|field| flags.iter().any(|flag| flag == field.flag)).map(|field| field.path).collect()
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};
    use serde_json::json;

    use super::*;
    use crate::Postern;

    fn typed(line: &str) -> Result<crate::objects::Command, clap::Error> {
        let words = std::iter::once("postern").chain(line.split(' '));
        Postern::try_parse_from(words).map(|postern| match postern.command {
            crate::Command::Objects(command) => command,
            _ => unreachable!("{line} is about objects"),
        })
    }

    #[test]
    fn the_commands_are_well_formed() {
        Postern::command().debug_assert();
    }

    #[test]
    fn every_kind_has_the_five_commands_and_some_have_verbs_of_their_own() {
        let postern = Postern::command();
        for kind in Kind::ALL {
            let command = postern.find_subcommand(kind.to_string()).unwrap_or_else(|| panic!("no command {kind}"));
            for verb in ["create", "list", "show", "update", "delete"] {
                assert!(command.find_subcommand(verb).is_some(), "{kind} {verb}");
            }
        }
        for (kind, verb) in [
            ("service", "accept"),
            ("service", "reject"),
            ("service", "connections"),
            ("target", "register"),
            ("target", "deregister"),
            ("target", "list"),
            ("gateway", "drain"),
            ("gateway", "undrain"),
            ("principal", "token"),
            ("principal", "tokens"),
            ("principal", "revoke"),
        ] {
            assert!(postern.find_subcommand(kind).unwrap().find_subcommand(verb).is_some(), "{kind} {verb}");
        }
    }

    #[test]
    fn what_is_typed_becomes_the_spec() {
        let command = typed(
            "endpoint create web --vpc a --service s --address 10.0.0.9 --address any,zone=z --echo=false --tag t=1 \
             --wait --json --api unix:/a",
        );
        let command = command.unwrap();
        assert_eq!((command.kind, command.json, command.wait), (Kind::Endpoint, true, Some(Duration::from_secs(60))));
        let Action::Create { name, spec, tags, .. } = command.action else { panic!("not a creation") };
        assert_eq!(name.as_deref(), Some("web"));
        assert_eq!(tags["t"], "1");
        let addresses = json!([{ "address": "10.0.0.9" }, { "zone": "z" }]);
        assert_eq!(spec, json!({ "vpc": "a", "service": "s", "addresses": addresses, "echo": false }));
    }

    #[test]
    fn an_update_says_what_is_set_and_what_goes() {
        let command = typed("target-group update web --slots 65537 --unset health-check-port --untag a --if-version 3");
        let Action::Update { reference, set, unset, untag, if_version, .. } = command.unwrap().action else {
            panic!("not an update")
        };
        assert_eq!((reference.as_str(), if_version), ("web", Some(3)));
        assert_eq!(set, [("slots", json!(65_537))]);
        assert_eq!(unset, ["health_check.port"]);
        assert_eq!(untag, ["a"]);
    }

    #[test]
    fn what_is_not_typed_right_is_refused_with_exit_code_2() {
        for (line, word) in [
            ("endpoint create web --vpc a", "--service"),
            ("vpc create a --slots 3", "--slots"),
            ("target register web 10.0.0.1", "10.0.0.1"),
            ("principal create a --role king", "tenant"),
            ("attachment create a --gateway g --vpc v --port p --vlan x", "not a number"),
            ("vpc list --state available", "--state"),
            ("vpc create a --api nowhere", "unix:PATH"),
            ("vpc update a --unset slots", "slots"),
            ("vpc create a --tag x", "KEY=VALUE"),
        ] {
            let error = typed(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(word), "{line}: {error}");
        }
    }
}
