//! Creating objects, and what a creation can end in (I2, I5).

use crate::env::Env;
use crate::error::{StoreError, io_kind, is_full, transport_kind};
use crate::get::is_same;
use crate::http::Attempts;
use bytes::Bytes;
use object_store::client::HttpErrorKind;
use object_store::path::Path;
use object_store::{Error, Extensions, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use std::io;
use std::time::Duration;

/// An object that is there already is compared with one's own bytes in parts of this size.
const COMPARED_PART_BYTES: u64 = 16 << 20;
/// How often [`create`] puts and reads back before it says that the outcome is unknown.
const CREATE_TRIES: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// What a put-if-absent ended in, as far as one request can tell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PutOutcome {
    /// The object is there, with these bytes, durably.
    Created,
    /// An object of this name was there. It may be this writer's own: the store's client repeats a request
    /// whose answer was lost. Compare the bodies.
    AlreadyExists,
    /// The object may be there or not, or may yet appear. Read back; delete nothing.
    Unknown(StoreError),
}

/// What a creation ended in, after reading back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Creation {
    /// The object is there, with these bytes.
    Created,
    /// It was there already, with the same bytes.
    Same,
    /// It was there already, with other bytes. Whoever wants them reads them, under a bound of its own.
    Other,
}

/// Creates the object `path` unless there is one, in one request.
///
/// An `Err` is certain: nothing was created and, but for [`StoreError::Unavailable`] and [`StoreError::ClocksApart`], trying
/// again is no use.
pub async fn put_if_absent(
    objects: &dyn ObjectStore,
    path: &Path,
    bytes: Bytes,
) -> Result<PutOutcome, StoreError> {
    let attempts = Attempts::default();
    let mut extensions = Extensions::new();
    extensions.insert(attempts.clone());
    let options = PutOptions { mode: PutMode::Create, extensions, ..PutOptions::default() };
    let Err(error) = objects.put_opts(path, bytes.into(), options).await else {
        return Ok(PutOutcome::Created);
    };
    let sorted = StoreError::from_attempts(path, &error, &attempts);
    if let Some(may_have_been_applied) = attempts.may_have_been_applied() {
        return match error {
            _ if may_have_been_applied => Ok(PutOutcome::Unknown(sorted)),
            Error::AlreadyExists { .. } | Error::Precondition { .. } => Ok(PutOutcome::AlreadyExists),
            _ => Err(sorted),
        };
    }
    match error {
        Error::AlreadyExists { .. } | Error::Precondition { .. } => Ok(PutOutcome::AlreadyExists),
        Error::PermissionDenied { .. }
        | Error::Unauthenticated { .. }
        | Error::NotFound { .. }
        | Error::NotImplemented { .. }
        | Error::NotSupported { .. }
        | Error::InvalidPath { .. }
        | Error::UnknownConfigurationKey { .. } => Err(sorted),
        error => sort_without_answer(objects, path, &error, sorted).await,
    }
}

/// A failure that no server answered: of a folder, or before the request was sent.
async fn sort_without_answer(
    objects: &dyn ObjectStore,
    path: &Path,
    error: &Error,
    sorted: StoreError,
) -> Result<PutOutcome, StoreError> {
    if transport_kind(error) == Some(HttpErrorKind::Connect) {
        return Err(sorted);
    }
    let refused = [
        io::ErrorKind::PermissionDenied,
        io::ErrorKind::ReadOnlyFilesystem,
        io::ErrorKind::NotADirectory,
        io::ErrorKind::IsADirectory,
    ];
    let local = io_kind(error).is_some_and(|kind| is_full(kind) || refused.contains(&kind));
    // On a folder the name appears in one step, after the data is synced and before the directory is.
    if local && matches!(objects.head(path).await, Err(Error::NotFound { .. })) {
        return Err(sorted);
    }
    Ok(PutOutcome::Unknown(sorted))
}

/// Creates the object `path` unless there is one, and settles an unknown outcome by reading back.
///
/// "Created" and "same" mean the same to a caller whose bytes hold a fresh id. What stays unknown after a bounded
/// number of tries is [`StoreError::Unknown`]. Reading back takes 16 MiB of memory, however long the object is.
pub async fn create(
    objects: &dyn ObjectStore,
    env: &Env,
    path: &Path,
    bytes: Bytes,
) -> Result<Creation, StoreError> {
    let mut last = String::new();
    for attempt in 0..CREATE_TRIES {
        if attempt > 0 {
            env.clock.sleep(FIRST_PAUSE.saturating_mul(1 << (attempt - 1))).await;
        }
        let mut is_durable = false;
        match put_if_absent(objects, path, bytes.clone()).await {
            Ok(PutOutcome::Created) => return Ok(Creation::Created),
            Ok(PutOutcome::AlreadyExists) => {
                is_durable = true;
                "it exists, but cannot be read".clone_into(&mut last);
            }
            Ok(PutOutcome::Unknown(error)) => last = error.to_string(),
            // An earlier try is still open, so this refusal of a later one settles nothing.
            Err(error) if attempt > 0 => last = error.to_string(),
            Err(error) => return Err(error),
        }
        match is_same(objects, path, &bytes, COMPARED_PART_BYTES).await {
            Ok(Some(true)) => {
                // A folder shows an object before it is synced; one that "exists" has been (I4).
                let again = bytes.clone();
                if is_durable || put_if_absent(objects, path, again).await == Ok(PutOutcome::AlreadyExists) {
                    return Ok(Creation::Same);
                }
            }
            Ok(Some(false)) => return Ok(Creation::Other),
            Ok(None) => {}
            Err(error) => last = format!("{last}; reading it back: {error}"),
        }
    }
    Err(StoreError::Unknown { object: path.to_string(), reason: last })
}

/// Writes an object that is a hint only: replaced without a condition, and never trusted.
pub async fn put_hint(objects: &dyn ObjectStore, path: &Path, bytes: Bytes) -> Result<(), StoreError> {
    match objects.put_opts(path, bytes.into(), PutOptions::default()).await {
        Ok(_) => Ok(()),
        Err(error) => Err(StoreError::from_request(path, &error)),
    }
}

#[cfg(test)]
#[path = "put_tests.rs"]
mod tests;
