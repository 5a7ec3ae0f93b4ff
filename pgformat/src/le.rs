//! Bounds-checked reads of little-endian integers: PostgreSQL writes its own byte order, and every platform that
//! Zenith supports is little-endian (a control file of another order fails its version check).

/// `N` bytes at `offset`, `None` past the end.
pub(crate) fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

pub(crate) fn u16(bytes: &[u8], offset: usize) -> Option<u16> {
    array(bytes, offset).map(u16::from_le_bytes)
}

pub(crate) fn u32(bytes: &[u8], offset: usize) -> Option<u32> {
    array(bytes, offset).map(u32::from_le_bytes)
}

pub(crate) fn u64(bytes: &[u8], offset: usize) -> Option<u64> {
    array(bytes, offset).map(u64::from_le_bytes)
}

/// A C `bool`: any byte but 0 counts, as in C.
pub(crate) fn bool(bytes: &[u8], offset: usize) -> Option<bool> {
    bytes.get(offset).map(|byte| *byte != 0)
}

/// Writes `value` at `offset` of a buffer that is known to be long enough; past its end it writes nothing.
pub(crate) fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    if let Some(target) = bytes.get_mut(offset..offset + value.len()) {
        target.copy_from_slice(value);
    }
}
