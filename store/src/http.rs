//! The HTTP client below the cloud stores: bounds every attempt in time, and tells a conditional put what
//! became of each of its attempts.
//!
//! `object_store` retries server errors of conditional puts too, and reports only the last attempt. An earlier
//! one may have been applied, so "refused" is certain only if *no* attempt can have been: the attempts are
//! recorded in an extension that travels with the request.
//!
//! A refusal because of a wrong clock is told as one: [`crate::clocks`].

use crate::clocks;
use crate::env::{Clock, Env};
use async_trait::async_trait;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use object_store::{ClientOptions, Result};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long an answer may take to begin, besides the time that sending the body takes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The slowest upload that is waited for, in bytes a second.
const UPLOAD_BYTES_PER_SECOND_MIN: u64 = 512 * 1024;

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
        clocks::judge(answer?, self.clock.now(), limit).await
    }
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
    fn a_large_upload_has_longer_than_a_small_one() {
        assert_eq!(answer_limit(100), ANSWER_TIMEOUT);
        assert_eq!(answer_limit(128 << 20), ANSWER_TIMEOUT + Duration::from_secs(256));
    }
}
