//! What went wrong at the store, told by what the caller should do about it.

use crate::clocks::ClocksApart;
use crate::http::Attempts;
use object_store::client::{HttpError, HttpErrorKind};
use std::error::Error as StdError;
use std::io;

/// The longest reason that a message carries; servers answer with whole pages of XML or HTML.
const REASON_CHARS_MAX: usize = 400;

/// A failed request. Every variant names the object (or the store) and says why; none holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The object does not exist; a bucket that does not is [`StoreError::Refused`]. Trying again does not help.
    #[error("{object} is not in the store ({reason})")]
    NotFound {
        /// Which object.
        object: String,
        /// The store's own words.
        reason: String,
    },
    /// The object is there, but is not what it must be. Trying again does not help.
    #[error("{object} is damaged: {reason}; restore it from a copy of the store")]
    Corrupt {
        /// Which object.
        object: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The store refuses these credentials, or the file system these rights. Trying again does not help.
    #[error("no rights to {object}: {reason}; check the store's credentials, or the folder's owner and mode")]
    Denied {
        /// Which object.
        object: String,
        /// The store's own words.
        reason: String,
    },
    /// The disk or the quota of a folder store is full. Trying again helps once there is room.
    #[error(
        "no room for {object}: {reason}; make room on the disk of the store, or raise the quota or the limit on the size \
         of files, and try again"
    )]
    Full {
        /// Which object.
        object: String,
        /// The system's own words.
        reason: String,
    },
    /// The store did not answer, or answered that it cannot at the moment; retries are used up. Trying again
    /// later may help.
    #[error("the store does not answer for {object}: {reason}; check its URL, endpoint and network")]
    Unavailable {
        /// Which object.
        object: String,
        /// The last failure.
        reason: String,
    },
    /// The store refuses requests because they are signed with another time than its own. Trying again helps once the clocks
    /// agree, which is what time synchronisation is for.
    #[error(
        "the store refuses the request for {object} ({reason}): its clock says {there}, and this machine's {here}; set the \
         clock that is wrong, and try again"
    )]
    ClocksApart {
        /// Which object.
        object: String,
        /// The store's own words.
        reason: String,
        /// The time by this machine's clock, RFC 3339.
        here: String,
        /// The time by the store's.
        there: String,
    },
    /// A request that creates the object failed in a way that leaves open whether it was applied, and reading
    /// back did not settle it (I5). Nothing may be deleted because of it; try again.
    #[error("whether {object} was created is not known: {reason}; run the command again")]
    Unknown {
        /// Which object.
        object: String,
        /// The last failure.
        reason: String,
    },
    /// The store cannot do what Zenith needs, or the request makes no sense to it. Trying again does not help.
    #[error("the store refuses the request for {object}: {reason}")]
    Refused {
        /// Which object.
        object: String,
        /// The store's own words.
        reason: String,
    },
    /// The URL or an option is wrong.
    #[error("store settings: {0}")]
    Settings(String),
}

impl StoreError {
    /// Whether the same request may succeed later without anybody changing anything of Zenith's or the store's.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            StoreError::Unavailable { .. } | StoreError::Unknown { .. } | StoreError::ClocksApart { .. }
        )
    }

    /// Whether the object does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, StoreError::NotFound { .. })
    }

    /// [`StoreError::from_request`] where the server's answers are known.
    pub(crate) fn from_attempts(
        object: &impl ToString,
        error: &object_store::Error,
        attempts: &Attempts,
    ) -> StoreError {
        match StoreError::from_request(object, error) {
            StoreError::Unavailable { object, reason } if attempts.were_refused() => {
                StoreError::Refused { object, reason }
            }
            sorted => sorted,
        }
    }

    /// Sorts a failure of `object_store` on `object`.
    pub fn from_request(object: &impl ToString, error: &object_store::Error) -> StoreError {
        use object_store::Error as E;
        let (object, reason) = (object.to_string(), reason(error));
        if let Some(apart) = causes(error).find_map(|cause| cause.downcast_ref::<ClocksApart>()) {
            let (here, there) = (apart.here.clone(), apart.there.clone());
            return StoreError::ClocksApart { object, reason, here, there };
        }
        match error {
            // Must not pass for a missing object: restore_command would say "not in the archive".
            E::NotFound { .. } if is_about_the_bucket(&reason) => StoreError::Refused { object, reason },
            E::NotFound { .. } => StoreError::NotFound { object, reason },
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => StoreError::Denied { object, reason },
            E::InvalidPath { .. }
            | E::NotSupported { .. }
            | E::NotImplemented { .. }
            | E::UnknownConfigurationKey { .. }
            | E::AlreadyExists { .. }
            | E::Precondition { .. }
            | E::NotModified { .. } => StoreError::Refused { object, reason },
            _ => match io_kind(error) {
                Some(kind) if is_full(kind) => StoreError::Full { object, reason },
                Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {
                    StoreError::Denied { object, reason }
                }
                Some(io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory) => {
                    StoreError::Refused { object, reason }
                }
                _ => match status_of(error) {
                    Some(401 | 403) => StoreError::Denied { object, reason },
                    Some(400..=407 | 409..=428 | 430..=499) => StoreError::Refused { object, reason },
                    _ => StoreError::Unavailable { object, reason },
                },
            },
        }
    }
}

/// The status that a server answered a listing with, which comes as a generic failure. The client's error type for it is
/// private, so that its words have to do; what the server itself says stands behind them.
fn status_of(error: &object_store::Error) -> Option<u16> {
    let text = error.source()?.to_string();
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

/// Whether the disk, the quota or the limit on the size of files does not allow more.
pub(crate) fn is_full(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

/// The `io::Error` behind a failure of a folder store, if that is what it was.
pub(crate) fn io_kind(error: &object_store::Error) -> Option<io::ErrorKind> {
    if transport_kind(error).is_some() {
        return None;
    }
    causes(error).find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind)
}

/// How the connection failed, if that is what it was.
pub(crate) fn transport_kind(error: &object_store::Error) -> Option<HttpErrorKind> {
    causes(error).find_map(|cause| cause.downcast_ref::<HttpError>()).map(HttpError::kind)
}

fn causes(error: &object_store::Error) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    std::iter::successors(Some(error as &(dyn StdError + 'static)), |&cause| cause.source())
}

/// One line for people: the server's code and message where it sent XML, else the failure and its root cause.
fn reason(error: &object_store::Error) -> String {
    let text = error.source().map_or_else(|| error.to_string(), ToString::to_string);
    let mut line = match (between(&text, "<Code>", "</Code>"), between(&text, "<Message>", "</Message>")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code.to_owned(),
        _ => text.split_whitespace().collect::<Vec<_>>().join(" "),
    };
    if let Some(root) = causes(error).last().map(ToString::to_string)
        && !text.contains(&root)
    {
        line = format!("{line}: {root}");
    }
    if text.contains("169.254.169.254") {
        line.push_str(
            " (no credentials were given, so the cloud's metadata service was asked: set AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY, or name them in zenith.toml)",
        );
    }
    if ["certificate expired", "certificate not valid yet"].iter().any(|words| line.contains(words)) {
        line.push_str(" (is this machine's clock right?)");
    }
    if line.chars().count() > REASON_CHARS_MAX {
        line = line.chars().take(REASON_CHARS_MAX).chain("...".chars()).collect();
    }
    line
}

/// S3 and Google's XML answers say the first, Azure the second. An answer to HEAD has no body that could say so.
fn is_about_the_bucket(reason: &str) -> bool {
    ["NoSuchBucket", "ContainerNotFound"].iter().any(|code| reason.starts_with(code))
}

fn between<'a>(text: &'a str, open: &str, close: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(open)?;
    rest.split_once(close).map(|(inner, _)| inner.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(source: impl StdError + Send + Sync + 'static) -> object_store::Error {
        object_store::Error::Generic { store: "test", source: Box::new(source) }
    }

    #[test]
    fn a_full_disk_and_missing_rights_are_told_apart_from_an_outage() {
        let sorted = |kind: io::ErrorKind| StoreError::from_request(&"a/b", &generic(io::Error::from(kind)));
        for full in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded, io::ErrorKind::FileTooLarge] {
            assert!(matches!(sorted(full), StoreError::Full { .. }));
        }
        assert!(matches!(sorted(io::ErrorKind::PermissionDenied), StoreError::Denied { .. }));
        assert!(matches!(sorted(io::ErrorKind::ReadOnlyFilesystem), StoreError::Denied { .. }));
        assert!(matches!(sorted(io::ErrorKind::Other), StoreError::Unavailable { .. }));
    }

    #[test]
    fn a_refused_connection_is_an_outage_even_where_the_system_says_denied() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = generic(HttpError::new(HttpErrorKind::Connect, denied));
        assert!(StoreError::from_request(&"a", &error).is_transient());
    }

    #[test]
    fn a_listing_that_is_refused_is_no_outage() {
        let sorted = |status: &str| {
            let words = format!(
                "Error performing GET x in 1ms - Server returned non-2xx status code: {status}: body"
            );
            StoreError::from_request(&"a", &generic(io::Error::other(words)))
        };
        assert!(matches!(sorted("403 Forbidden"), StoreError::Denied { .. }));
        assert!(matches!(sorted("404 Not Found"), StoreError::Refused { .. }));
        assert!(sorted("503 Slow Down").is_transient() && sorted("429 Too Many Requests").is_transient());
    }

    #[test]
    fn a_page_of_xml_becomes_its_code_and_message() {
        let xml = "Server returned 403: <?xml?><Error><Code>AccessDenied</Code><Message>Access Denied.</Message>\
                   <AWSAccessKeyId>k</AWSAccessKeyId></Error>";
        let error = object_store::Error::PermissionDenied {
            path: "a/b".to_owned(),
            source: Box::new(io::Error::other(xml.to_owned())),
        };
        let sorted = StoreError::from_request(&"a/b", &error);
        assert_eq!(
            sorted,
            StoreError::Denied { object: "a/b".into(), reason: "AccessDenied: Access Denied.".into() }
        );
    }

    #[test]
    fn a_certificate_out_of_its_time_makes_one_look_at_the_clock() {
        let words = "invalid peer certificate: certificate not valid yet: verification time 1 (UNIX)";
        let error = generic(HttpError::new(HttpErrorKind::Connect, io::Error::other(words)));
        let sorted = StoreError::from_request(&"a", &error);
        assert!(sorted.is_transient() && sorted.to_string().contains("clock right?"), "{sorted}");
    }

    #[test]
    fn a_message_is_bounded() {
        let error = generic(io::Error::other("x".repeat(1 << 20)));
        assert!(StoreError::from_request(&"a", &error).to_string().len() < 600);
    }
}
