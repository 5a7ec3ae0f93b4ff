//! The answer to one request of a page stream.

use super::metrics::PageSource;
use super::pagestream::{Answer, Code, Request, Wanted};
use super::source::Source;
use super::tokens::Denied;
use crate::error::ReadError;
use crate::meaning::Meaning;
use crate::snapshot::Snapshot;
use futures::FutureExt;
use std::panic::AssertUnwindSafe;
use std::time::Duration;
use zenith_layers::metered;
use zenith_manifest::NameError;
use zenith_store::TimelineId;

/// Answers a request, whatever becomes of it.
pub(super) async fn answer(source: &Source, timeline: TimelineId, request: &Request) -> Answer {
    // A panic ends the work on this request alone: what others share is held by nobody across it.
    let answer = match AssertUnwindSafe(wanted(source, timeline, request)).catch_unwind().await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => Answer::from(&error),
        Err(_) => {
            let message = format!("the page service failed at {}: see its log", describe(request));
            Answer::Error { code: Code::Retry, message }
        }
    };
    source.counted().answered(&answer);
    answer
}

async fn wanted(source: &Source, timeline: TimelineId, request: &Request) -> Result<Answer, ReadError> {
    let (seen, begun) = (source.renewed(), source.clock().elapsed());
    let (used, error) = match source.snapshot(timeline, request.lsn).await {
        Ok(snapshot) => match read(source, &snapshot, request, begun).await {
            Err(error) => (Some(snapshot), error),
            answer => return answer,
        },
        Err(error) => (None, error),
    };
    // Named by a manifest version that is not the newest any more, perhaps.
    if error.is_missing_layer() && source.renew(timeline, used.as_ref().map(Snapshot::timeline), seen) {
        let snapshot = source.snapshot(timeline, request.lsn).await?;
        return read(source, &snapshot, request, begun).await;
    }
    Err(error)
}

/// `begun`: when the request came.
async fn read(
    source: &Source,
    snapshot: &Snapshot,
    request: &Request,
    begun: Duration,
) -> Result<Answer, ReadError> {
    let _working = source.working().await;
    let (pages, looked) = match request.wanted {
        Wanted::Relation { node, fork } => return Ok(Answer::Relation(snapshot.rel_size(node, fork).await?)),
        Wanted::Pages { node, fork, block, count: 1 } => {
            match snapshot.page_in_memory(node, fork, block).await {
                Some(page) => (vec![page], None),
                None => {
                    let (page, looked) = metered(snapshot.built_page(node, fork, block)).await;
                    (vec![page?], Some(looked))
                }
            }
        }
        Wanted::Pages { node, fork, block, count } => {
            let (pages, looked) = metered(snapshot.pages(node, fork, block, u32::from(count))).await;
            (pages?, Some(looked))
        }
    };
    let took = source.clock().elapsed().saturating_sub(begun);
    let from = looked.map_or(PageSource::PageCache, PageSource::built);
    source.counted().served(from, took, pages.len(), looked);
    Ok(Answer::Pages(pages))
}

fn describe(request: &Request) -> String {
    let lsn = request.lsn;
    match request.wanted {
        Wanted::Pages { node, fork, block, count } => {
            format!("{count} blocks from {block} of {node} {} at LSN {lsn}", fork.name())
        }
        Wanted::Relation { node, fork } => format!("{node} {} at LSN {lsn}", fork.name()),
    }
}

impl From<&ReadError> for Answer {
    fn from(error: &ReadError) -> Answer {
        let code = match error.meaning() {
            Meaning::MayPass => Code::Retry,
            Meaning::NotYet => Code::NotYet,
            Meaning::NotThere => Code::Gone,
            Meaning::Damage => Code::Corrupt,
        };
        Answer::Error { code, message: error.to_string() }
    }
}

/// `insufficient_privilege`, `undefined_object`, or what the error is.
pub(super) fn sqlstate_of_denied(denied: &Denied) -> &'static str {
    match denied {
        Denied::Scope(_) => "42501",
        Denied::Gone(_) => "42704",
        Denied::Read(error) => sqlstate(error),
    }
}

/// `undefined_object`, else `cannot_connect_now`, else `data_corrupted`.
pub(super) fn sqlstate(error: &ReadError) -> &'static str {
    match error.meaning() {
        // Of a timeline that the client itself named.
        _ if matches!(error, ReadError::Name(NameError::NoTimeline { .. })) => "42704",
        Meaning::NotThere => "42704",
        Meaning::MayPass | Meaning::NotYet => "57P03",
        Meaning::Damage => "XX001",
    }
}
