//! The catalog as its callers use it.

mod access;
mod applying;
mod builder;
mod life;
mod property;
mod rules;
