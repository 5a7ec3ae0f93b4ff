//! Reading objects: always bounded, always whole, never keeping more memory alive than was asked for.

use crate::error::StoreError;
use crate::http::Attempts;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    Error, Extensions, GetOptions, GetRange, GetResult, GetResultPayload, ObjectMeta, ObjectStore,
};
use object_store::{ObjectStoreExt, Result as StoreResult};
use std::ops::Range;
use std::time::Duration;

/// How often a body that breaks off is asked for.
const BODY_TRIES: u32 = 3;
/// The longest pause inside a body.
const BODY_STALL: Duration = Duration::from_secs(15);

/// How [`get_ranges`] joins ranges of one object into requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Coalescing {
    /// Ranges at most this many bytes apart are fetched together: the bytes between cost less than a request.
    pub gap_bytes_max: u64,
    /// A request made of several ranges is at most this long.
    pub merged_bytes_max: u64,
    /// How many requests run at the same time.
    pub parallel_max: usize,
}

impl Default for Coalescing {
    fn default() -> Coalescing {
        Coalescing { gap_bytes_max: 128 << 10, merged_bytes_max: 4 << 20, parallel_max: 8 }
    }
}

/// The whole object, of at most `bytes_max` bytes.
pub async fn get(objects: &dyn ObjectStore, path: &Path, bytes_max: u64) -> Result<Bytes, StoreError> {
    Ok(fetch(objects, path, None, bytes_max).await?.0)
}

/// The whole object, of at most `bytes_max` bytes; `None` if there is none.
pub async fn get_if_present(
    objects: &dyn ObjectStore,
    path: &Path,
    bytes_max: u64,
) -> Result<Option<Bytes>, StoreError> {
    match get(objects, path, bytes_max).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Exactly these bytes of the object; one that ends before them is damaged.
pub async fn get_range(
    objects: &dyn ObjectStore,
    path: &Path,
    range: Range<u64>,
) -> Result<Bytes, StoreError> {
    if range.end <= range.start {
        return Ok(Bytes::new());
    }
    let bytes_max = range.end - range.start;
    Ok(fetch(objects, path, Some(range), bytes_max).await?.0)
}

/// Whether the object is exactly these bytes; `None` if there is none. It is read in parts of at most `part_bytes`,
/// up to the first difference; one of another length only once.
pub async fn is_same(
    objects: &dyn ObjectStore,
    path: &Path,
    bytes: &Bytes,
    part_bytes: u64,
) -> Result<Option<bool>, StoreError> {
    let length = bytes.len() as u64;
    let mut from = 0u64;
    loop {
        let to = length.min(from.saturating_add(part_bytes.max(1)));
        let range = (length > 0).then_some(from..to);
        match fetch(objects, path, range, length).await {
            Ok((part, size)) if size != length || bytes.get(from as usize..to as usize) != Some(&*part) => {
                return Ok(Some(false));
            }
            Ok(_) if to == length => return Ok(Some(true)),
            Ok(_) => from = to,
            // It is of another length: the one thing that `fetch` calls damage.
            Err(StoreError::Corrupt { .. }) => return Ok(Some(false)),
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// Exactly these ranges of the object, in the order given, each in memory of its own. Ranges close to one another
/// are fetched together.
pub async fn get_ranges(
    objects: &dyn ObjectStore,
    path: &Path,
    ranges: &[Range<u64>],
    coalescing: Coalescing,
) -> Result<Vec<Bytes>, StoreError> {
    let requests = coalesce(ranges, coalescing);
    let fetched: Vec<Vec<(usize, Bytes)>> = futures::stream::iter(requests)
        .map(|request| async move {
            let whole = get_range(objects, path, request.span.clone()).await?;
            let parts =
                request.members.iter().map(|&member| cut(path, ranges, member, &request.span, &whole));
            parts.collect::<Result<Vec<_>, StoreError>>()
        })
        .buffer_unordered(coalescing.parallel_max.max(1))
        .try_collect()
        .await?;
    let mut answer = vec![Bytes::new(); ranges.len()];
    for (member, bytes) in fetched.into_iter().flatten() {
        if let Some(slot) = answer.get_mut(member) {
            *slot = bytes;
        }
    }
    Ok(answer)
}

/// Whether the object is there, and how long it is. Unlike reading, this cannot tell a missing bucket from a
/// missing object.
pub async fn head(objects: &dyn ObjectStore, path: &Path) -> Result<Option<ObjectMeta>, StoreError> {
    match objects.head(path).await {
        Ok(meta) => Ok(Some(meta)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(StoreError::from_request(path, &error)),
    }
}

/// All objects below `prefix`, sorted by name; more than `objects_max` is an error, not a longer answer.
pub async fn list(
    objects: &dyn ObjectStore,
    prefix: &Path,
    objects_max: usize,
) -> Result<Vec<ObjectMeta>, StoreError> {
    collect_listing(objects.list(Some(prefix)), prefix, objects_max).await
}

/// As [`list`], only the objects whose name sorts after `after`.
pub async fn list_after(
    objects: &dyn ObjectStore,
    prefix: &Path,
    after: &Path,
    objects_max: usize,
) -> Result<Vec<ObjectMeta>, StoreError> {
    collect_listing(objects.list_with_offset(Some(prefix), after), prefix, objects_max).await
}

/// The object below `prefix` whose name sorts last; the whole listing is read, but not kept.
pub async fn last_listed(objects: &dyn ObjectStore, prefix: &Path) -> Result<Option<Path>, StoreError> {
    let newest = objects.list(Some(prefix)).map_ok(|meta| meta.location);
    let newest = newest.try_fold(None, |last: Option<Path>, next| {
        futures::future::ready(Ok(Some(last.map_or_else(|| next.clone(), |last| last.max(next.clone())))))
    });
    newest.await.map_err(|error| StoreError::from_request(prefix, &error))
}

async fn collect_listing(
    mut listing: futures::stream::BoxStream<'static, StoreResult<ObjectMeta>>,
    prefix: &Path,
    objects_max: usize,
) -> Result<Vec<ObjectMeta>, StoreError> {
    let mut found = Vec::new();
    while let Some(meta) = listing.next().await {
        found.push(meta.map_err(|error| StoreError::from_request(prefix, &error))?);
        if found.len() > objects_max {
            return Err(StoreError::Refused {
                object: prefix.to_string(),
                reason: format!("more than {objects_max} objects below it"),
            });
        }
    }
    // A folder lists in no order, and so do some stores.
    found.sort_unstable_by(|a, b| a.location.cmp(&b.location));
    Ok(found)
}

/// The bytes asked for, and how long the object is.
async fn fetch(
    objects: &dyn ObjectStore,
    path: &Path,
    range: Option<Range<u64>>,
    bytes_max: u64,
) -> Result<(Bytes, u64), StoreError> {
    let mut last = String::new();
    for _ in 0..BODY_TRIES {
        let attempts = Attempts::default();
        let mut extensions = Extensions::new();
        extensions.insert(attempts.clone());
        let range_asked = range.clone().map(GetRange::Bounded);
        let options = GetOptions { range: range_asked, extensions, ..GetOptions::default() };
        let answer = match objects.get_opts(path, options).await {
            Ok(answer) => answer,
            Err(error) => {
                let sorted = StoreError::from_attempts(path, &error, &attempts);
                return Err(range_error(objects, path, range.as_ref(), sorted).await);
            }
        };
        check_span(path, range.as_ref(), &answer, bytes_max)?;
        let size = answer.meta.size;
        match body(answer).await {
            Ok(bytes) => return Ok((bytes, size)),
            Err(reason) => last = reason,
        }
    }
    Err(StoreError::Unavailable { object: path.to_string(), reason: last })
}

/// The store must answer with what was asked, and not with more than the caller has room for.
fn check_span(
    path: &Path,
    range: Option<&Range<u64>>,
    answer: &GetResult,
    bytes_max: u64,
) -> Result<(), StoreError> {
    let size = answer.meta.size;
    let reason = match range {
        Some(range) if answer.range == *range => return Ok(()),
        Some(range) => too_short(size, range),
        None if size <= bytes_max => return Ok(()),
        None => format!("it has {size} bytes, more than the {bytes_max} that such an object may have"),
    };
    Err(StoreError::Corrupt { object: path.to_string(), reason })
}

fn too_short(size: u64, range: &Range<u64>) -> String {
    format!("it has {size} bytes, but bytes {} to {} are needed", range.start, range.end)
}

/// Stores answer in many ways to a range past the end of an object; its size tells.
async fn range_error(
    objects: &dyn ObjectStore,
    path: &Path,
    range: Option<&Range<u64>>,
    sorted: StoreError,
) -> StoreError {
    if let (Some(range), StoreError::Unavailable { .. } | StoreError::Refused { .. }) = (range, &sorted)
        && let Ok(meta) = objects.head(path).await
        && meta.size < range.end
    {
        return StoreError::Corrupt { object: path.to_string(), reason: too_short(meta.size, range) };
    }
    sorted
}

/// The body in memory of its own; `Err` says how it broke off.
async fn body(answer: GetResult) -> Result<Bytes, String> {
    let length = answer.range.end.saturating_sub(answer.range.start);
    let bytes = match answer.payload {
        GetResultPayload::File(..) => answer.bytes().await.map_err(|e| e.to_string())?,
        GetResultPayload::Stream(mut chunks) => {
            let mut bytes = BytesMut::with_capacity(usize::try_from(length).unwrap_or_default());
            loop {
                let chunk = tokio::time::timeout(BODY_STALL, chunks.next()).await;
                match chunk.map_err(|_| format!("its body stopped after {} bytes", bytes.len()))? {
                    None => break,
                    Some(Ok(chunk)) => bytes.extend_from_slice(&chunk),
                    Some(Err(error)) => return Err(error.to_string()),
                }
                if bytes.len() as u64 > length {
                    break;
                }
            }
            bytes.freeze()
        }
    };
    if bytes.len() as u64 == length {
        Ok(bytes)
    } else {
        Err(format!("its body has {} of {length} bytes", bytes.len()))
    }
}

/// One request of [`get_ranges`]: the bytes it fetches and the ranges that lie in them.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Request {
    span: Range<u64>,
    members: Vec<usize>,
}

fn coalesce(ranges: &[Range<u64>], limits: Coalescing) -> Vec<Request> {
    let mut order: Vec<(usize, &Range<u64>)> = ranges.iter().enumerate().collect();
    order.sort_by_key(|(_, range)| (range.start, range.end));
    let mut requests: Vec<Request> = Vec::new();
    for (member, range) in order {
        if let Some(last) = requests.last_mut() {
            let end = last.span.end.max(range.end);
            let near = range.start.saturating_sub(last.span.end) <= limits.gap_bytes_max;
            if near && (end - last.span.start <= limits.merged_bytes_max || end == last.span.end) {
                last.span.end = end;
                last.members.push(member);
                continue;
            }
        }
        requests.push(Request { span: range.start..range.end.max(range.start), members: vec![member] });
    }
    requests
}

/// One range out of the bytes of a request: copied where it shares them, so that a cache that keeps one of them
/// does not keep all.
fn cut(
    path: &Path,
    ranges: &[Range<u64>],
    member: usize,
    span: &Range<u64>,
    whole: &Bytes,
) -> Result<(usize, Bytes), StoreError> {
    let part = ranges.get(member).and_then(|range| {
        if range == span {
            return Some(whole.clone());
        }
        let start = usize::try_from(range.start.checked_sub(span.start)?).ok()?;
        let end = usize::try_from(range.end.max(range.start).checked_sub(span.start)?).ok()?;
        whole.get(start..end).map(Bytes::copy_from_slice)
    });
    let part = part.ok_or_else(|| StoreError::Corrupt {
        object: path.to_string(),
        reason: format!("bytes {} to {} are not all there", span.start, span.end),
    })?;
    Ok((member, part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::count::CountingStore;
    use object_store::memory::InMemory;
    use std::sync::Arc;

    const LIMITS: Coalescing = Coalescing { gap_bytes_max: 10, merged_bytes_max: 100, parallel_max: 2 };

    fn spans(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
        coalesce(ranges, LIMITS).into_iter().map(|request| request.span).collect()
    }

    #[test]
    fn near_ranges_are_fetched_together_and_far_ones_are_not() {
        assert_eq!(spans(&[0..5, 15..20]), vec![0..20]);
        assert_eq!(spans(&[0..5, 16..20]), vec![0..5, 16..20]);
        assert_eq!(spans(&[16..20, 0..5]), vec![0..5, 16..20]);
        assert_eq!(spans(&[0..5, 2..3, 0..5]), vec![0..5]);
    }

    #[test]
    fn a_request_of_several_ranges_is_bounded_and_one_range_is_not_cut() {
        assert_eq!(spans(&[0..60, 60..101]), vec![0..60, 60..101]);
        assert_eq!(spans(&[0..60, 60..100]), vec![0..100]);
        assert_eq!(spans(&[0..500, 100..200]), vec![0..500]);
    }

    async fn object(bytes: &'static [u8]) -> (CountingStore, Path) {
        let path = Path::from("a/object");
        let store = CountingStore::new(Arc::new(InMemory::new()));
        store.put(&path, Bytes::from_static(bytes).into()).await.unwrap();
        (store, path)
    }

    #[tokio::test]
    async fn ranges_come_back_in_the_order_asked_from_few_requests() {
        let (store, path) = object(b"0123456789abcdefghijklmnopqrstuvwxyz").await;
        let before = store.counts().snapshot();
        let ranges = [30..32, 0..2, 5..5, 1..4];
        let parts = get_ranges(&store, &path, &ranges, LIMITS).await.unwrap();
        assert_eq!(parts, [&b"uv"[..], b"01", b"", b"123"]);
        assert_eq!(store.counts().snapshot().since(&before).gets, 2);
    }

    #[tokio::test]
    async fn an_object_that_ends_before_the_range_is_damaged() {
        let (store, path) = object(b"short").await;
        for range in [3..9, 7..9] {
            let error = get_range(&store, &path, range).await.unwrap_err();
            assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
            assert!(error.to_string().contains("a/object"), "{error}");
        }
    }

    #[tokio::test]
    async fn an_object_larger_than_the_bound_is_refused_before_it_is_read() {
        let (store, path) = object(b"0123456789").await;
        assert!(matches!(get(&store, &path, 9).await, Err(StoreError::Corrupt { .. })));
        assert_eq!(get(&store, &path, 10).await.unwrap().len(), 10);
    }

    #[tokio::test]
    async fn a_missing_object_is_not_found_and_no_outage() {
        let (store, _) = object(b"").await;
        let missing = Path::from("a/missing");
        assert_eq!(get_if_present(&store, &missing, 1).await, Ok(None));
        assert!(get_range(&store, &missing, 0..1).await.unwrap_err().is_not_found());
        assert!(head(&store, &missing).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_listing_is_sorted_and_bounded() {
        let (store, _) = object(b"").await;
        store.put(&Path::from("a/b"), Bytes::new().into()).await.unwrap();
        let found = list(&store, &Path::from("a"), 2).await.unwrap();
        assert_eq!(found.iter().map(|m| m.location.as_ref()).collect::<Vec<_>>(), ["a/b", "a/object"]);
        assert!(list(&store, &Path::from("a"), 1).await.is_err());
        assert_eq!(list_after(&store, &Path::from("a"), &Path::from("a/b"), 9).await.unwrap().len(), 1);
        assert_eq!(last_listed(&store, &Path::from("a")).await.unwrap(), Some(Path::from("a/object")));
        assert_eq!(last_listed(&store, &Path::from("z")).await.unwrap(), None);
    }
}
