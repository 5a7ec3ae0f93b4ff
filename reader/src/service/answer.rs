//! The answer to one request of a page stream.

use super::pagestream::{Answer, Code, Request, Wanted};
use super::source::Source;
use super::tokens::Denied;
use crate::error::ReadError;
use crate::meaning::Meaning;
use crate::snapshot::Snapshot;
use futures::FutureExt;
use std::panic::AssertUnwindSafe;
use zenith_layers::{Looked, metered};
use zenith_manifest::NameError;
use zenith_store::TimelineId;

/// Answers a request, whatever becomes of it.
pub(super) async fn answer(source: &Source, timeline: TimelineId, request: &Request) -> Answer {
    let begun = source.clock().elapsed();
    // A panic ends the work on this request alone: what others share is held by nobody across it.
    let work = AssertUnwindSafe(wanted(source, timeline, request)).catch_unwind();
    let (outcome, all) = metered(work).await;
    let (answer, built) = match outcome {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => (Answer::from(&error), None),
        Err(_) => {
            let message = format!("the page service failed at {}: see its log", describe(request));
            (Answer::Error { code: Code::Retry, message }, None)
        }
    };
    let took = source.clock().elapsed().saturating_sub(begun);
    source.counted().answered(&answer, took, built, all);
    answer
}

/// What building the pages of an answer asked of the layers, if they had to be built.
type Found = (Answer, Option<Looked>);

async fn wanted(source: &Source, timeline: TimelineId, request: &Request) -> Result<Found, ReadError> {
    let seen = source.renewed();
    let (used, error) = match source.snapshot(timeline, request.lsn).await {
        Ok(snapshot) => match read(source, &snapshot, request).await {
            Err(error) => (Some(snapshot), error),
            found => return found,
        },
        Err(error) => (None, error),
    };
    // Named by a manifest version that is not the newest any more, perhaps.
    if error.is_missing_layer() && source.renew(timeline, used.as_ref().map(Snapshot::timeline), seen) {
        let snapshot = source.snapshot(timeline, request.lsn).await?;
        return read(source, &snapshot, request).await;
    }
    Err(error)
}

async fn read(source: &Source, snapshot: &Snapshot, request: &Request) -> Result<Found, ReadError> {
    let _working = source.working().await;
    Ok(match request.wanted {
        Wanted::Pages { node, fork, block, count: 1 } => {
            match snapshot.page_in_memory(node, fork, block).await {
                Some(page) => (Answer::Pages(vec![page]), None),
                None => {
                    let (page, looked) = metered(snapshot.built_page(node, fork, block)).await;
                    (Answer::Pages(vec![page?]), Some(looked))
                }
            }
        }
        Wanted::Pages { node, fork, block, count } => {
            let (pages, looked) = metered(snapshot.pages(node, fork, block, u32::from(count))).await;
            (Answer::Pages(pages?), Some(looked))
        }
        Wanted::Relation { node, fork } => (Answer::Relation(snapshot.rel_size(node, fork).await?), None),
    })
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
