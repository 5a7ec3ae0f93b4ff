//! The questions that psql can ask.

use super::source::Source;
use super::tokens::Scope;
use crate::error::ReadError;
use futures::StreamExt;
use zenith_store::TimelineId;

/// Timelines that are looked into at the same time.
const PARALLEL: usize = 4;

/// What a query asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Query {
    Empty,
    Version,
    Timelines,
    /// Makes the connection a page stream of that timeline.
    PageStream(String),
}

/// `None`: nothing that this service knows.
pub(super) fn parse(text: &str) -> Option<Query> {
    let words: Vec<&str> = text.trim().trim_end_matches(';').split_whitespace().collect();
    let is = |word: &str, keyword: &str| word.eq_ignore_ascii_case(keyword);
    match words.as_slice() {
        [] => Some(Query::Empty),
        [show, what] if is(show, "show") && is(what, "version") => Some(Query::Version),
        [show, what] if is(show, "show") && is(what, "timelines") => Some(Query::Timelines),
        [command, timeline] if is(command, "pagestream") => {
            Some(Query::PageStream(timeline.trim_matches('"').to_owned()))
        }
        _ => None,
    }
}

/// What there is to ask.
pub(super) const KNOWN: &str =
    "this is Zenith's page service; it knows SHOW version, SHOW timelines and pagestream TIMELINE";

/// The columns of [`timelines`].
pub(super) const COLUMNS: [&str; 6] = ["name", "timeline", "parent", "from", "to", "error"];

/// The timelines that have a name and are the client's to see, and the LSNs between which each can be read, or why it cannot
/// be.
pub(super) async fn timelines(source: &Source, scope: &Scope) -> Result<Vec<Vec<String>>, ReadError> {
    let named = source.names().list().await?;
    let shown = named.into_iter().filter(|(name, id)| scope.shows(name, *id));
    let rows = shown.map(async |(name, id): (String, TimelineId)| {
        let [mut parent, mut from, mut to, mut error] = [const { String::new() }; 4];
        match source.look_at(id).await {
            Ok(timeline) => {
                parent = timeline.parent().map(|parent| parent.id().to_string()).unwrap_or_default();
                let ranges = timeline.ranges();
                from = ranges.first().map(|range| range.from.to_string()).unwrap_or_default();
                to = ranges.last().map(|range| range.to.to_string()).unwrap_or_default();
            }
            Err(reason) => error = reason.to_string(),
        }
        vec![name, id.to_string(), parent, from, to, error]
    });
    Ok(futures::stream::iter(rows).buffered(PARALLEL).collect().await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_have_no_case_and_names_have() {
        assert_eq!(parse(" Show VERSION ; "), Some(Query::Version));
        assert_eq!(parse("PageStream \"Main\""), Some(Query::PageStream("Main".to_owned())));
        assert_eq!(parse(";"), Some(Query::Empty));
        assert_eq!(parse("SELECT 1"), None);
        assert_eq!(parse("pagestream a b"), None);
    }
}
