//! The answer to one request of a page stream.

use super::pagestream::{Answer, Code, Request, Wanted};
use super::source::Source;
use crate::error::{Meaning, ReadError};
use zenith_store::TimelineId;

/// Answers a request, whatever becomes of it.
pub(super) async fn answer(source: &Source, timeline: TimelineId, request: &Request) -> Answer {
    wanted(source, timeline, request).await.unwrap_or_else(|error| Answer::from(&error))
}

async fn wanted(source: &Source, timeline: TimelineId, request: &Request) -> Result<Answer, ReadError> {
    let snapshot = source.snapshot(timeline, request.lsn).await?;
    Ok(match request.wanted {
        Wanted::Pages { node, fork, block, count: 1 } => {
            Answer::Pages(vec![snapshot.page(node, fork, block).await?])
        }
        Wanted::Pages { node, fork, block, count } => {
            Answer::Pages(snapshot.pages(node, fork, block, u32::from(count)).await?)
        }
        Wanted::Relation { node, fork } => Answer::Relation(snapshot.rel_size(node, fork).await?),
    })
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
