//! Why a call was refused, in a form that programs and people can use.

use std::fmt;

use postern_tables::error::Problem;
use serde::{Deserialize, Serialize};

/// The kind of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Code {
    /// A value is not allowed, or values do not go together.
    Invalid,
    /// There is no such object, or the caller must not know of it.
    NotFound,
    /// The object is not in the state, or not of the version, that the call needs.
    Conflict,
    /// Others use it.
    InUse,
    /// The name or address is taken.
    AlreadyExists,
    /// The caller may not do it.
    Forbidden,
    /// It is not known who calls.
    Unauthenticated,
    /// A gateway that would hold it cannot enforce it.
    NotSupportedByGateway,
    /// More than there may be.
    TooLarge,
    /// The store failed.
    Internal,
}

/// A refused call. Nothing was changed by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Its kind.
    pub code: Code,
    /// A sentence for people.
    pub message: String,
    /// The field of the call that is wrong, such as `spec.listeners[0].port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Ids of those who use the object, as far as the caller may see them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<String>,
}

impl Refusal {
    /// A refusal that concerns no field.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), field: None, users: Vec::new() }
    }

    /// With the field that is wrong.
    #[must_use]
    pub fn at(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// A value that is not allowed.
    pub(super) fn value(field: impl Into<String>, value: impl fmt::Display, problem: impl fmt::Display) -> Self {
        let field = field.into();
        let mut value = value.to_string();
        if value.chars().nth(80).is_some() {
            value = value.chars().take(80).chain(['…']).collect();
        }
        let value = value.replace(char::is_control, " ");
        Self::new(Code::Invalid, format!("{field} = {value}: {problem}")).at(field)
    }

    /// A number outside its range.
    pub(super) fn range(field: impl Into<String>, value: i64, range: (i64, i64), unit: &'static str) -> Self {
        Self::value(field, value, Problem::Range { low: range.0, high: range.1, unit })
    }

    /// A text that does not have its form.
    pub(super) fn form(field: impl Into<String>, value: &str, form: impl Into<String>) -> Self {
        Self::value(field, format_args!("\"{value}\""), Problem::Form(form.into()))
    }

    /// Something that must be there is not.
    pub(super) fn missing(field: impl Into<String>, allowed: &'static str) -> Self {
        Self::value(field, "\"\"", Problem::Missing(allowed))
    }
}
