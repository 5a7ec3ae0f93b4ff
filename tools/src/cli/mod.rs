//! What every command shares: options and their sources, exit codes, output, units and times.

pub mod config;
pub mod deadline;
pub mod exit;
pub mod interrupt;
pub mod options;
pub mod output;
pub mod postgres;
pub mod progress;
pub mod reading;
pub mod session;
pub mod time;
pub mod units;

pub use exit::{Usage, run};
pub use options::{Settings, StoreOptions, TimelineChoice};
pub use session::Session;
