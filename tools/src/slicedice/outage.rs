//! Errors that pass, such as a store that is away for a while.

use std::time::Duration;
use zenith_ingest::IngestError;
use zenith_ingest::error::{commit_passes, manifest_passes, passes};
use zenith_layers::LayerError;
use zenith_manifest::NameError;
use zenith_reader::ReadError;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Whether the store is away at the moment; told once when it goes and once when it is back.
#[derive(Debug, Default)]
pub(super) struct Outage {
    pause: Option<Duration>,
}

impl Outage {
    /// An error that may pass; gives the time to wait before the next try.
    pub(super) fn goes_on(&mut self, error: &anyhow::Error) -> Duration {
        let pause = match self.pause {
            None => {
                tracing::warn!("slicing is held up and goes on as soon as it can: {error:#}");
                FIRST_PAUSE
            }
            Some(pause) => {
                tracing::debug!("still held up: {error:#}");
                LONGEST_PAUSE.min(pause.saturating_mul(2))
            }
        };
        *self.pause.insert(pause)
    }

    /// Whether slicing is held up.
    pub(super) fn is_on(&self) -> bool {
        self.pause.is_some()
    }

    /// Slicing has gone on.
    pub(super) fn is_over(&mut self) {
        if self.pause.take().is_some() {
            tracing::info!("slicing goes on");
        }
    }
}

/// [`IngestError::may_pass`], for everything that a slicer meets.
pub(super) fn may_pass(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref().is_some_and(IngestError::may_pass)
            || cause.downcast_ref().is_some_and(read_passes)
            || cause.downcast_ref().is_some_and(name_passes)
            || cause.downcast_ref().is_some_and(commit_passes)
            || cause.downcast_ref().is_some_and(manifest_passes)
            || cause.downcast_ref().is_some_and(passes)
    })
}

fn name_passes(error: &NameError) -> bool {
    match error {
        NameError::Manifest(error) => manifest_passes(error),
        NameError::Commit(error) => commit_passes(error),
        _ => false,
    }
}

/// Of a branch's parent, whose layers are read.
fn read_passes(error: &ReadError) -> bool {
    match error {
        ReadError::Store(error) | ReadError::Layer(LayerError::Store { source: error, .. }) => passes(error),
        ReadError::Manifest(error) => manifest_passes(error),
        ReadError::Name(error) => name_passes(error),
        ReadError::Archive(error) => IngestError::Archive(error.clone()).may_pass(),
        ReadError::Tail(error) => error.may_pass(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;
    use zenith_manifest::{CommitError, ManifestError};
    use zenith_store::StoreError;

    fn away() -> StoreError {
        StoreError::Unavailable { object: "x".to_owned(), reason: "no answer".to_owned() }
    }

    #[test]
    fn an_outage_is_known_through_every_crate_that_meets_it_and_under_any_context() {
        let errors: [anyhow::Error; 7] = [
            away().into(),
            ManifestError::Store(away()).into(),
            CommitError::Unknown { version: 1, source: away() }.into(),
            NameError::Manifest(ManifestError::Store(away())).into(),
            IngestError::Store(away()).into(),
            ReadError::Store(away()).into(),
            ReadError::Tail(IngestError::Layer(LayerError::Store { doing: "reading", source: away() }))
                .into(),
        ];
        for error in errors {
            assert!(may_pass(&error), "{error:?}");
            assert!(may_pass(&Err::<(), _>(error).context("around").expect_err("an error")));
        }
    }

    #[test]
    fn what_does_not_pass_ends_a_follower() {
        let damaged = StoreError::Corrupt { object: "x".to_owned(), reason: "cut".to_owned() };
        let errors: [anyhow::Error; 4] = [
            damaged.into(),
            IngestError::Fenced("epoch 2".to_owned()).into(),
            IngestError::TwoHistories { first: 2, second: 3 }.into(),
            anyhow::anyhow!("anything else"),
        ];
        for error in errors {
            assert!(!may_pass(&error), "{error:?}");
        }
    }

    #[test]
    fn pauses_grow_to_half_a_minute_and_begin_anew_after_an_outage() {
        let mut outage = Outage::default();
        let pauses: Vec<u64> = (0..8).map(|_| outage.goes_on(&away().into()).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30]);
        outage.is_over();
        assert_eq!(outage.goes_on(&away().into()), FIRST_PAUSE);
    }
}
