//! Telling a refusal that a wrong clock is the reason of from one that has another reason.
//!
//! Requests are signed with the time, and every answer tells the store's: a refusal while the two are far apart is told as
//! what it is, unless the store itself gives another reason. An answer to HEAD gives none, and each cloud has other words.

use futures::StreamExt;
use futures::stream::BoxStream;
use jiff::fmt::rfc2822::DateTimeParser;
use jiff::{Timestamp, Unit};
use object_store::client::{HttpError, HttpErrorKind, HttpResponse};
use std::time::{Duration, SystemTime};

/// S3 and Azure refuse what is signed 15 minutes before or after their own time; the answer is a little older than that.
const APART_MIN: Duration = Duration::from_secs(14 * 60);
/// As much is read of what a refusal says; the clouds' are a few hundred bytes.
const REFUSAL_BYTES_MAX: usize = 64 << 10;

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

/// The answer unchanged, or [`ClocksApart`] where that is why it is a refusal. What a refusal says is waited for up to
/// `limit`.
pub(crate) async fn judge(
    answer: HttpResponse,
    now: SystemTime,
    limit: Duration,
) -> Result<HttpResponse, HttpError> {
    let (status, date) = (answer.status().as_u16(), answer.headers().get("date"));
    let Some((here, there)) = apart(status, date.and_then(|date| date.to_str().ok()), now) else {
        return Ok(answer);
    };
    let (head, body) = answer.into_parts();
    let body = said(body.bytes_stream(), limit).await;
    if !may_be_about_time(&body) {
        return Ok(HttpResponse::from_parts(head, body.into()));
    }
    // Repeated, the same request would be as much out of its time.
    Err(HttpError::new(HttpErrorKind::Unknown, ClocksApart { status, body, here, there }))
}

/// This machine's time and the store's, where the one may be why the other refused: `date` is its answer's header.
fn apart(status: u16, date: Option<&str>, now: SystemTime) -> Option<(String, String)> {
    // How the clouds refuse a signature or a token out of its time.
    if !matches!(status, 400 | 401 | 403) {
        return None;
    }
    let there = DateTimeParser::new().parse_timestamp(date?).ok()?;
    let here = Timestamp::try_from(now).ok()?.round(Unit::Second).ok()?;
    let apart = here.duration_since(there).unsigned_abs();
    (apart >= APART_MIN).then(|| (here.to_string(), there.to_string()))
}

/// The text of a refusal, of a large one its beginning; nothing where it does not arrive.
async fn said(mut parts: BoxStream<'_, Result<impl AsRef<[u8]>, HttpError>>, limit: Duration) -> String {
    let whole = async {
        let mut bytes = Vec::new();
        while let Some(part) = parts.next().await {
            let part = part.ok()?;
            bytes.extend(part.as_ref().iter().take(REFUSAL_BYTES_MAX - bytes.len()));
            if bytes.len() == REFUSAL_BYTES_MAX {
                break;
            }
        }
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    tokio::time::timeout(limit, whole).await.ok().flatten().unwrap_or_default()
}

/// Whether a wrong clock may be the reason of a refusal with this body: it gives none, or one that has to do with times,
/// signatures or tokens. Codes: "Error responses" of Amazon S3's API and of Azure's common REST API.
fn may_be_about_time(body: &str) -> bool {
    /// In a code, which is one word.
    const CODE_PARTS: [&str; 6] = ["time", "expired", "skew", "signature", "token", "authenticat"];
    /// In a message. No single words, which the name of an object or of a user may hold.
    const PHRASES: [&str; 12] = [
        "has expired",
        "is expired",
        "have expired",
        "too skewed",
        "clock skew",
        "request time",
        "current time",
        "time frame",
        "timeframe",
        "time range",
        "not yet valid",
        "too old",
    ];
    /// In a text without a code: the JSON of Google's and Microsoft's token servers, which have no objects.
    const WORDS: [&str; 5] = ["token", "signature", "credential", "expired", "autherror"];
    if body.trim().is_empty() {
        return true;
    }
    let lower = body.to_lowercase();
    let tells = |text: &str, words: &[&str]| words.iter().any(|words| text.contains(words));
    let Some(code) = element(&lower, "code") else {
        return tells(&lower, &PHRASES) || tells(&lower, &WORDS);
    };
    // A connection that was too slow (S3's RequestTimeout).
    let about_time = tells(code, &CODE_PARTS) && !code.contains("timeout");
    let details = ["message", "authenticationerrordetail"];
    about_time
        || details.iter().any(|detail| element(&lower, detail).is_some_and(|text| tells(text, &PHRASES)))
}

/// What an XML element of this name holds.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(inner, _)| inner.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::client::HttpResponseBody;
    use std::error::Error;

    const NOW: i64 = 1_795_428_000;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(NOW.unsigned_abs())
    }

    fn date(offset: i64) -> String {
        let there = Timestamp::from_second(NOW + offset).unwrap();
        jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&there).unwrap()
    }

    fn xml(code: &str, message: &str) -> String {
        format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>")
    }

    #[test]
    fn only_a_refusal_while_clocks_are_far_apart_is_told_as_theirs() {
        assert!(date(0).ends_with(" GMT"), "{}", date(0));
        for refused in [400, 401, 403] {
            for offset in [3600, -3600, 10 * 365 * 86400, -27 * 365 * 86400] {
                let (here, there) = apart(refused, Some(&date(offset)), now()).unwrap();
                assert_ne!(here, there);
            }
            for near in [0, 600, -600] {
                assert_eq!(apart(refused, Some(&date(near)), now()), None);
            }
            assert_eq!(apart(refused, Some("no date"), now()), None);
            assert_eq!(apart(refused, None, now()), None);
        }
        for other in [200, 206, 304, 404, 409, 412, 429, 500, 503] {
            assert_eq!(apart(other, Some(&date(3600)), now()), None);
        }
    }

    #[test]
    fn a_refusal_that_gives_no_reason_or_one_of_time_may_be_the_clocks() {
        assert!(may_be_about_time("") && may_be_about_time(" \n"));
        for code in [
            "RequestTimeTooSkewed",
            "RequestExpired",
            "ExpiredToken",
            "TokenRefreshRequired",
            "SignatureDoesNotMatch",
            "AuthenticationFailed",
            "InvalidAuthenticationInfo",
        ] {
            assert!(may_be_about_time(&xml(code, "no.")), "{code}");
        }
        assert!(may_be_about_time(&xml("AccessDenied", "Request has expired")));
        assert!(may_be_about_time(&xml("AccessDenied", "The request time is too far from mine.")));
        let azure = "<Error><Code>Other</Code><Message>No.</Message><AuthenticationErrorDetail>Request date header too old: \
                     'Tue, 22 Jun 1999'</AuthenticationErrorDetail></Error>";
        assert!(may_be_about_time(azure));
        for json in [
            r#"{"error":"invalid_grant","error_description":"Invalid JWT: Token must be in a reasonable timeframe."}"#,
            r#"{"error":"invalid_client","error_description":"Assertion is not within its valid time range."}"#,
            r#"{"error":{"code":401,"message":"Invalid Credentials"}}"#,
        ] {
            assert!(may_be_about_time(json), "{json}");
        }
    }

    #[test]
    fn a_refusal_that_gives_another_reason_is_not_the_clocks() {
        for code in [
            "AccessDenied",
            "AccountProblem",
            "AllAccessDisabled",
            "AuthorizationFailure",
            "AuthorizationPermissionMismatch",
            "InsufficientAccountPermissions",
            "InvalidAccessKeyId",
            "InvalidArgument",
            "InvalidBucketName",
            "InvalidObjectState",
            "MalformedXML",
            "NoSuchBucket",
            "RequestTimeout",
        ] {
            assert!(!may_be_about_time(&xml(code, "no.")), "{code}");
        }
        // The names of users and objects, and Azure's own time, which stands in every message of it.
        let user = "User: arn:aws:iam::1:user/tokens is not authorized to perform: s3:PutObject on \"expired/time/signature\"";
        assert!(!may_be_about_time(&xml("AccessDenied", user)));
        let azure = "This request is not authorized.\nRequestId:1-expired\nTime:2026-11-23T11:00:00.1234567Z";
        assert!(!may_be_about_time(&xml("AuthorizationPermissionMismatch", azure)));
        assert!(!may_be_about_time("<html><title>403 Forbidden</title></html>"));
    }

    fn refusal(offset: i64, body: &str) -> HttpResponse {
        let mut answer = HttpResponse::new(HttpResponseBody::from(body.to_owned()));
        *answer.status_mut() = 403_u16.try_into().unwrap();
        answer.headers_mut().insert("date", date(offset).parse().unwrap());
        answer
    }

    #[tokio::test]
    async fn missing_rights_are_answered_as_such_whatever_the_clocks_say() {
        let denied = xml("AccessDenied", "Access Denied.");
        let answer = judge(refusal(3600, &denied), now(), Duration::from_secs(60)).await.unwrap();
        assert_eq!(answer.status().as_u16(), 403);
        assert_eq!(answer.headers().get("date").unwrap().to_str().unwrap(), date(3600));
        assert_eq!(answer.into_body().bytes().await.unwrap(), denied.as_bytes());
        let skewed = xml("RequestTimeTooSkewed", "The difference is too large.");
        let error = judge(refusal(3600, &skewed), now(), Duration::from_secs(60)).await.unwrap_err();
        assert!(error.source().is_some_and(|cause| cause.is::<ClocksApart>()), "{error:?}");
        assert!(judge(refusal(0, &skewed), now(), Duration::from_secs(60)).await.is_ok());
    }

    #[tokio::test]
    async fn what_a_refusal_says_is_bounded_in_time_and_size() {
        let minute = Duration::from_secs(60);
        let stream = |parts: Vec<Result<Vec<u8>, HttpError>>| futures::stream::iter(parts).boxed();
        assert_eq!(said(stream(vec![Ok(b"a".to_vec()), Ok(b"b".to_vec())]), minute).await, "ab");
        let endless = futures::stream::repeat_with(|| Ok(vec![b'x'; 1000])).boxed();
        assert_eq!(said(endless, minute).await.len(), REFUSAL_BYTES_MAX);
        let broken = HttpError::new(HttpErrorKind::Interrupted, std::io::Error::other("gone"));
        assert_eq!(said(stream(vec![Ok(b"<Code>Access".to_vec()), Err(broken)]), minute).await, "");
        let stuck = stream(vec![Ok(b"a".to_vec())]).chain(futures::stream::pending()).boxed();
        assert_eq!(said(stuck, Duration::from_millis(1)).await, "");
    }
}
