//! The HTTP client below the cloud stores: bounds every attempt in time, and tells a conditional put what
//! became of each of its attempts.
//!
//! `object_store` retries server errors of conditional puts too, and reports only the last attempt. An earlier
//! one may have been applied, so "refused" is certain only if *no* attempt can have been: the attempts are
//! recorded in an extension that travels with the request.
//!
//! Requests are signed with the time, and every answer tells the store's: a refusal while the two are far apart is told as
//! what it is, because an answer to HEAD says nothing else, and each cloud has other words for it.

use crate::env::{Clock, Env};
use async_trait::async_trait;
use jiff::fmt::rfc2822::DateTimeParser;
use jiff::{Timestamp, Unit};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use object_store::{ClientOptions, Result};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// How long an answer may take to begin, besides the time that sending the body takes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The slowest upload that is waited for, in bytes a second.
const UPLOAD_BYTES_PER_SECOND_MIN: u64 = 512 * 1024;
/// S3 and Azure refuse what is signed 15 minutes before or after their own time; the answer is a little older than that.
const APART_MIN: Duration = Duration::from_secs(14 * 60);

/// What became of one attempt at a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Attempt {
    /// No connection: the server saw nothing.
    NotSent,
    /// No answer: it may have been applied.
    Unanswered,
    /// The server's status.
    Answered(u16),
}

impl Attempt {
    /// Whether the server may have done what was asked, although it did not say so.
    fn may_have_been_applied(self) -> bool {
        match self {
            Attempt::NotSent => false,
            Attempt::Unanswered => true,
            // Success of which the rest was lost; 408 and 409 to a conditional put: another request, or an attempt
            // of our own, was under way.
            Attempt::Answered(status) => matches!(status, 200..=299 | 408 | 409 | 500..),
        }
    }
}

/// All attempts at one request, in order.
#[derive(Clone, Default, Debug)]
pub(crate) struct Attempts(Arc<Mutex<Vec<Attempt>>>);

impl Attempts {
    fn record(&self, attempt: Attempt) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(attempt);
    }

    /// `None` where the request went to no HTTP server (a folder), else whether one of the attempts may have
    /// been applied.
    pub(crate) fn may_have_been_applied(&self) -> Option<bool> {
        let attempts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if attempts.is_empty() {
            return None;
        }
        Some(attempts.iter().any(|attempt| attempt.may_have_been_applied()))
    }

    /// Whether the last answer was that the request itself is wrong, so that repeating it is no use.
    pub(crate) fn were_refused(&self) -> bool {
        let attempts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(attempts.last(), Some(Attempt::Answered(400..=407 | 410..=428 | 430..=499)))
    }
}

/// Makes clients that keep to the bounds above.
#[derive(Debug)]
pub(crate) struct BoundedConnector {
    inner: ReqwestConnector,
    clock: Arc<dyn Clock>,
}

impl Default for BoundedConnector {
    /// By the machine's clock, with which requests are signed.
    fn default() -> BoundedConnector {
        BoundedConnector { inner: ReqwestConnector::default(), clock: Env::system().clock }
    }
}

impl HttpConnector for BoundedConnector {
    fn connect(&self, options: &ClientOptions) -> Result<HttpClient> {
        let (inner, clock) = (self.inner.connect(options)?, Arc::clone(&self.clock));
        Ok(HttpClient::new(BoundedClient { inner, clock }))
    }
}

#[derive(Debug)]
struct BoundedClient {
    inner: HttpClient,
    clock: Arc<dyn Clock>,
}

#[async_trait]
impl HttpService for BoundedClient {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let attempts = request.extensions().get::<Attempts>().cloned();
        let limit = answer_limit(request.body().content_length());
        let answer = match tokio::time::timeout(limit, self.inner.execute(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(HttpError::new(HttpErrorKind::Timeout, NoAnswer(limit))),
        };
        if let Some(attempts) = attempts {
            attempts.record(match &answer {
                Ok(response) => Attempt::Answered(response.status().as_u16()),
                Err(error) if error.kind() == HttpErrorKind::Connect => Attempt::NotSent,
                Err(_) => Attempt::Unanswered,
            });
        }
        let answer = answer?;
        let (status, date) = (answer.status().as_u16(), answer.headers().get("date"));
        let Some((here, there)) =
            clocks_apart(status, date.and_then(|date| date.to_str().ok()), self.clock.now())
        else {
            return Ok(answer);
        };
        let body = answer.into_body().bytes().await.unwrap_or_default();
        let body = String::from_utf8_lossy(&body).into_owned();
        // Repeated, the same request would be as much out of its time.
        Err(HttpError::new(HttpErrorKind::Unknown, ClocksApart { status, body, here, there }))
    }
}

/// A request was refused by a store whose clock and this machine's are far apart.
#[derive(Debug, thiserror::Error)]
#[error("the server answered {status}: {body}")]
pub(crate) struct ClocksApart {
    status: u16,
    body: String,
    /// By this machine's clock, RFC 3339.
    pub(crate) here: String,
    /// By the store's.
    pub(crate) there: String,
}

/// This machine's time and the store's, where the one may be why the other refused: `date` is its answer's header.
fn clocks_apart(status: u16, date: Option<&str>, now: SystemTime) -> Option<(String, String)> {
    // How the clouds refuse a signature or a token out of its time.
    if !matches!(status, 400 | 401 | 403) {
        return None;
    }
    let there = DateTimeParser::new().parse_timestamp(date?).ok()?;
    let here = Timestamp::try_from(now).ok()?.round(Unit::Second).ok()?;
    let apart = here.duration_since(there).unsigned_abs();
    (apart >= APART_MIN).then(|| (here.to_string(), there.to_string()))
}

#[derive(Debug, thiserror::Error)]
#[error("no answer within {0:?}")]
struct NoAnswer(Duration);

fn answer_limit(body_bytes: usize) -> Duration {
    let body_bytes = u64::try_from(body_bytes).unwrap_or(u64::MAX);
    ANSWER_TIMEOUT + Duration::from_secs(body_bytes / UPLOAD_BYTES_PER_SECOND_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_attempt_that_may_have_been_applied_decides() {
        let attempts = Attempts::default();
        assert_eq!(attempts.may_have_been_applied(), None);
        attempts.record(Attempt::NotSent);
        attempts.record(Attempt::Answered(403));
        assert_eq!(attempts.may_have_been_applied(), Some(false));
        for ambiguous in
            [Attempt::Unanswered, Attempt::Answered(503), Attempt::Answered(409), Attempt::Answered(200)]
        {
            let attempts = Attempts::default();
            attempts.record(ambiguous);
            attempts.record(Attempt::Answered(403));
            assert_eq!(attempts.may_have_been_applied(), Some(true), "{ambiguous:?}");
        }
    }

    #[test]
    fn only_a_refusal_while_clocks_are_far_apart_is_told_as_theirs() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_428_000);
        let date = |offset: i64| {
            let there = Timestamp::from_second(1_795_428_000 + offset).unwrap();
            jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&there).unwrap()
        };
        assert!(date(0).ends_with(" GMT"), "{}", date(0));
        for refused in [400, 401, 403] {
            for apart in [3600, -3600, 10 * 365 * 86400, -27 * 365 * 86400] {
                let (here, there) = clocks_apart(refused, Some(&date(apart)), now).unwrap();
                assert_ne!(here, there);
            }
            for near in [0, 600, -600] {
                assert_eq!(clocks_apart(refused, Some(&date(near)), now), None);
            }
            assert_eq!(clocks_apart(refused, Some("no date"), now), None);
            assert_eq!(clocks_apart(refused, None, now), None);
        }
        for other in [200, 206, 304, 404, 409, 412, 429, 500, 503] {
            assert_eq!(clocks_apart(other, Some(&date(3600)), now), None);
        }
    }

    #[test]
    fn a_large_upload_has_longer_than_a_small_one() {
        assert_eq!(answer_limit(100), ANSWER_TIMEOUT);
        assert_eq!(answer_limit(128 << 20), ANSWER_TIMEOUT + Duration::from_secs(256));
    }
}
