//! What an error means to whoever asked: whether to try again, and what for. Every kind of error is named here, so that a new
//! one has to be judged.

use crate::error::ReadError;
use zenith_ingest::archive::ArchiveError;
use zenith_ingest::base::BaseError;
use zenith_layers::LayerError;
use zenith_manifest::{CommitError, ManifestError, NameError};
use zenith_redo::RedoError;
use zenith_store::StoreError;

/// What an error means to whoever asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Meaning {
    /// It may pass by itself, or once somebody has mended what is around the store, this program included: nothing is wrong with
    /// what is stored.
    MayPass,
    /// The LSN lies past what is sliced.
    NotYet,
    /// What was asked for is not there, and will not be.
    NotThere,
    /// What is stored is damaged (I9).
    Damage,
}

impl ReadError {
    /// What it means to whoever asked.
    pub fn meaning(&self) -> Meaning {
        match self {
            ReadError::Shared(error) => error.meaning(),
            ReadError::Store(error) => of_store(error),
            ReadError::Manifest(error) => of_manifest(error),
            ReadError::Layer(error) => of_layer(error),
            ReadError::Archive(error) => of_archive(error),
            ReadError::Base(error) => of_base(error),
            ReadError::Name(error) => of_name(error),
            ReadError::Redo { source, .. } => of_redo(source),
            ReadError::RedoStart(_)
            | ReadError::Interrupted(_)
            | ReadError::WorkDir { .. }
            | ReadError::TailFolder { .. } => Meaning::MayPass,
            ReadError::PastEnd { .. } | ReadError::Unconfirmed { .. } | ReadError::NoBase { .. } => {
                Meaning::NotYet
            }
            ReadError::BelowBase { .. }
            | ReadError::InGap { .. }
            | ReadError::NoSuchDatabase { .. }
            | ReadError::NoSuchRelation { .. }
            | ReadError::NoSuchBlock { .. }
            | ReadError::NoSuchKey { .. }
            | ReadError::TooMany { .. }
            | ReadError::MissingSegment { .. }
            | ReadError::NoTli { .. }
            | ReadError::OtherHistory { .. }
            | ReadError::NoRecord { .. } => Meaning::NotThere,
            ReadError::LostBase { .. }
            | ReadError::BadValue { .. }
            | ReadError::PageFromTheFuture { .. }
            | ReadError::TooManyAncestors { .. }
            | ReadError::BadIdentity { .. }
            | ReadError::UnknownBase { .. }
            | ReadError::Wal { .. }
            | ReadError::Tail(_)
            | ReadError::TailRefused(_) => Meaning::Damage,
        }
    }

    /// Whether it is a layer that the store does not have: with a newer manifest version than the one that names it, the answer
    /// may be another.
    pub(crate) fn is_missing_layer(&self) -> bool {
        match self {
            ReadError::Shared(error) => error.is_missing_layer(),
            ReadError::Layer(error) => matches!(error, LayerError::Missing { .. }),
            _ => false,
        }
    }
}

fn of_store(error: &StoreError) -> Meaning {
    match error {
        StoreError::NotFound { .. } | StoreError::Corrupt { .. } => Meaning::Damage,
        StoreError::Denied { .. }
        | StoreError::Full { .. }
        | StoreError::Unavailable { .. }
        | StoreError::ClocksApart { .. }
        | StoreError::Unknown { .. }
        | StoreError::Refused { .. }
        | StoreError::Settings(_) => Meaning::MayPass,
    }
}

fn of_manifest(error: &ManifestError) -> Meaning {
    match error {
        ManifestError::Store(error) => of_store(error),
        // A newer release of this program reads it.
        ManifestError::Newer { .. } | ManifestError::Encrypted { .. } => Meaning::MayPass,
        ManifestError::Damaged { .. }
        | ManifestError::Missing { .. }
        | ManifestError::Lost { .. }
        | ManifestError::NoVersion { .. } => Meaning::Damage,
    }
}

fn of_layer(error: &LayerError) -> Meaning {
    match error {
        LayerError::Store { source, .. } => of_store(source),
        LayerError::UnknownFormat { .. } => Meaning::MayPass,
        LayerError::Missing { .. }
        | LayerError::Damaged { .. }
        | LayerError::Overlap { .. }
        | LayerError::BadEntry { .. }
        | LayerError::NoSuchBase { .. }
        | LayerError::Refused(_)
        | LayerError::Encode(_) => Meaning::Damage,
    }
}

fn of_archive(error: &ArchiveError) -> Meaning {
    match error {
        ArchiveError::Store(error) => of_store(error),
        ArchiveError::Check { .. }
        | ArchiveError::Other { .. }
        | ArchiveError::Damaged { .. }
        | ArchiveError::Unreadable { .. }
        | ArchiveError::History { .. } => Meaning::Damage,
    }
}

fn of_base(error: &BaseError) -> Meaning {
    match error {
        BaseError::Store(error) => of_store(error),
        BaseError::Layer(error) => of_layer(error),
        BaseError::Spool { .. } => Meaning::MayPass,
        BaseError::Page { .. }
        | BaseError::Control(_)
        | BaseError::TwoPhase { .. }
        | BaseError::RelMap { .. }
        | BaseError::File { .. }
        | BaseError::Incomplete(_)
        | BaseError::Missing { .. }
        | BaseError::Damaged { .. } => Meaning::Damage,
    }
}

fn of_name(error: &NameError) -> Meaning {
    match error {
        NameError::Manifest(error) => of_manifest(error),
        NameError::Malformed { .. } | NameError::NotFound { .. } | NameError::Collected { .. } => {
            Meaning::NotThere
        }
        // Of a timeline that a name, a branch or a client leads to, the identity is gone.
        NameError::NoTimeline { .. } | NameError::NamesLost { .. } => Meaning::Damage,
        NameError::Commit(error) => match error {
            CommitError::Manifest(error) => of_manifest(error),
            CommitError::Conflict { .. } | CommitError::Unknown { .. } => Meaning::MayPass,
            CommitError::Fenced(_) | CommitError::Refused(_) => Meaning::NotThere,
        },
        // Of changes that a reader does not make.
        NameError::Taken { .. }
        | NameError::TooDeep { .. }
        | NameError::NoBranch { .. }
        | NameError::NoPin { .. }
        | NameError::HasBranches { .. } => Meaning::NotThere,
    }
}

fn of_redo(error: &RedoError) -> Meaning {
    match error {
        RedoError::Crashed { .. }
        | RedoError::TimedOut { .. }
        | RedoError::Unavailable { .. }
        | RedoError::ShuttingDown { .. } => Meaning::MayPass,
        RedoError::LostBase { .. }
        | RedoError::Failed { .. }
        | RedoError::BadRecord { .. }
        | RedoError::RecordTooLong { .. }
        | RedoError::BadEdit { .. }
        | RedoError::BadBase { .. } => Meaning::Damage,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unavailable() -> StoreError {
        StoreError::Unavailable { object: "o".to_owned(), reason: "r".to_owned() }
    }

    #[test]
    fn a_store_that_does_not_answer_may_pass_whoever_asked_it() {
        let errors = [
            ReadError::Store(unavailable()),
            ReadError::Manifest(ManifestError::Store(unavailable())),
            ReadError::Layer(LayerError::Store { doing: "reading", source: unavailable() }),
            ReadError::Archive(ArchiveError::Store(unavailable())),
            ReadError::Base(BaseError::Store(unavailable())),
            ReadError::Base(BaseError::Layer(LayerError::Store { doing: "reading", source: unavailable() })),
            ReadError::Name(NameError::Manifest(ManifestError::Store(unavailable()))),
        ];
        for error in errors {
            assert_eq!(error.meaning(), Meaning::MayPass, "{error:?}");
            assert_eq!(ReadError::Shared(error.into()).meaning(), Meaning::MayPass);
        }
    }

    #[test]
    fn a_layer_that_is_missing_is_one_however_often_it_was_passed_on() {
        let missing = || ReadError::Layer(LayerError::Missing { object: "o".to_owned() });
        assert!(ReadError::Shared(ReadError::Shared(missing().into()).into()).is_missing_layer());
        assert_eq!(missing().meaning(), Meaning::Damage);
        assert!(!ReadError::Store(unavailable()).is_missing_layer());
    }
}
