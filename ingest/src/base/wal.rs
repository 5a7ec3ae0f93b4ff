//! The WAL that a base image carries: from the start of the segment that holds its redo LSN up to its end, one object a
//! segment. It is used below the base's end only, and is never taken for an archived segment.

use super::BaseError;
use crate::archive::frame;
use bytes::Bytes;
use object_store::ObjectStore;
use zenith_manifest::BaseId;
use zenith_pgformat::Tli;
use zenith_pgformat::wal_name::{WalFile, WalSegSize};
use zenith_store::TimelinePaths;

/// `wal-<segment>.zst`: zstd, the segment or its beginning.
pub(crate) fn object_name(tli: Tli, segment: u64, size: WalSegSize) -> String {
    format!("wal-{}.zst", WalFile::Segment { tli, segment }.name(size))
}

/// The beginning of a segment (or all of it) as a base image carries it; `None` if it does not.
pub async fn read_base_wal(
    objects: &dyn ObjectStore,
    paths: &TimelinePaths,
    base: BaseId,
    tli: Tli,
    segment: u64,
    size: WalSegSize,
) -> Result<Option<Bytes>, BaseError> {
    let path = paths.base_object(base.0, &object_name(tli, segment, size));
    let max = frame::compressed_max(size.bytes());
    let Some(object) = zenith_store::get_if_present(objects, &path, max).await? else { return Ok(None) };
    let content = frame::decompress(&object, size.bytes())
        .map_err(|what| BaseError::Damaged { object: path.to_string(), what })?;
    Ok(Some(content.into()))
}
