//! `postern vpc …`, `postern endpoint …` and so on: the objects of the catalog. One implementation serves all kinds;
//! `kinds` says what is different.

mod action;
mod commands;
mod fields;
mod kinds;
pub(crate) mod show;
mod wait;

use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{ArgMatches, FromArgMatches, Subcommand};
use postern_control::catalog::model::Kind;

use crate::client::Options;
use action::Action;

/// A command about objects.
#[derive(Debug)]
pub(crate) struct Command {
    kind: Kind,
    action: Action,
    options: Options,
    json: bool,
    wait: Option<Duration>,
}

impl Subcommand for Command {
    fn augment_subcommands(command: clap::Command) -> clap::Command {
        command.subcommands(commands::all())
    }

    fn augment_subcommands_for_update(command: clap::Command) -> clap::Command {
        Self::augment_subcommands(command)
    }

    fn has_subcommand(name: &str) -> bool {
        commands::subject(name).is_some()
    }
}

impl FromArgMatches for Command {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let missing = || clap::Error::new(ErrorKind::MissingSubcommand);
        let (name, of_subject) = matches.subcommand().ok_or_else(missing)?;
        let kind = commands::subject(name).ok_or_else(missing)?;
        let (verb, of_verb) = of_subject.subcommand().ok_or_else(missing)?;
        Ok(Self {
            kind,
            action: commands::action(name, kind, verb, of_verb)?,
            options: Options::from_arg_matches(of_verb)?,
            json: of_verb.get_flag("json"),
            wait: commands::wait(of_verb),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Runs the command.
pub(crate) fn run(command: &Command) -> ExitCode {
    let output = match command.options.api() {
        Ok(api) => action::run(&api, command.kind, &command.action, command.wait),
        Err(error) => Err(error),
    };
    match output {
        Ok(output) if command.json => crate::print::json(&output.json()),
        Ok(output) => crate::print::text(&output.text()),
        Err(error) => crate::print::error(&error),
    }
}
