//! Telemetry events to columns: the plain ones. What is not plain stays with the caller; see [`record`].

pub mod columns;
pub mod keys;
pub mod record;
