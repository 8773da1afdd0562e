//! The contract between what was declared and the workers: the immutable [`Snapshot`], and the one library that checks
//! what was declared (TOML file today, control later) and compiles it.
//!
//! Three types, one after the other: a [`Declaration`] as written, [`Checked`], a [`Snapshot`]. What control declares comes as
//! [`Change`]s to [`Tables`], and goes through the same checks.
//!
//! ```
//! # let text = "[[port]]\ninterface = \"eth1\"\n";
//! use postern_tables::{Declaration, compile};
//!
//! let checked = Declaration::from_toml(text, "gateway.toml")?.check()?;
//! let snapshot = compile(&checked, None);
//! let reloaded = Declaration::from_toml(text, "gateway.toml")?.check()?.reload(&checked)?;
//! let next = compile(&reloaded, Some(&snapshot));
//! assert!(next.generation > snapshot.generation);
//! # Ok::<(), postern_tables::Errors>(())
//! ```
#![forbid(unsafe_code)]

pub mod check;
pub mod compile;
pub mod declaration;
pub mod error;
pub mod health;
pub mod history;
pub mod lookup;
pub mod pages;
mod place;
pub mod resource;
pub mod security;
mod selection_tables;
pub mod sharded;
pub mod snapshot;
pub mod tables;
pub mod usable;

pub use check::Checked;
pub use compile::compile;
pub use declaration::Declaration;
pub use error::{ConfigurationError, Errors};
pub use resource::{Change, Resource, ResourceKey, ResourceKind};
pub use snapshot::Snapshot;
pub use tables::Tables;
pub use usable::Usable;
