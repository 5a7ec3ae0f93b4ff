//! WAL positions (`XLogRecPtr`, access/xlogdefs.h).

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A position in the WAL, in bytes since the cluster's first segment.
///
/// A value in the store is stamped with the *end* of its record (`EndRecPtr`): the position that redo puts
/// into `pd_lsn`, `MAXALIGN`ed, and for `XLOG_SWITCH` the start of the next segment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// `InvalidXLogRecPtr`.
    pub const INVALID: Lsn = Lsn(0);
    /// The highest position, "up to whatever there is".
    pub const MAX: Lsn = Lsn(u64::MAX);

    /// Whether this is a position at all.
    pub fn is_valid(self) -> bool {
        self != Lsn::INVALID
    }

    /// The next multiple of 8 (`MAXALIGN`, c.h); saturates at the top of the range.
    #[must_use]
    pub fn max_align(self) -> Lsn {
        Lsn(self.0.saturating_add(7) & !7)
    }

    /// `self + bytes`, or `None` past the end of the range.
    pub fn checked_add(self, bytes: u64) -> Option<Lsn> {
        self.0.checked_add(bytes).map(Lsn)
    }

    /// Bytes from `earlier` to `self`; 0 when `earlier` is later.
    pub fn since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not an LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not an LSN: expected two hexadecimal numbers of up to 8 digits, such as 0/16B3748")]
pub struct LsnParseError(pub String);

impl FromStr for Lsn {
    type Err = LsnParseError;

    /// Accepts what `pg_lsn_in` accepts (utils/adt/pg_lsn.c): 1 to 8 hex digits on each side of the slash.
    fn from_str(text: &str) -> Result<Lsn, LsnParseError> {
        let part = |digits: &str| {
            let well_formed =
                (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            if well_formed { u64::from_str_radix(digits, 16).ok() } else { None }
        };
        let parsed = text.split_once('/').and_then(|(high, low)| Some((part(high)?, part(low)?)));
        match parsed {
            Some((high, low)) => Ok(Lsn(high << 32 | low)),
            None => Err(LsnParseError(text.to_owned())),
        }
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Lsn, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_lsn_reads_back_as_it_prints() {
        for value in [0, 1, 0x16B_3748, 0xFFFF_FFFF, 0x1_0000_0000, u64::MAX] {
            let lsn = Lsn(value);
            assert_eq!(lsn.to_string().parse::<Lsn>(), Ok(lsn));
        }
    }

    #[test]
    fn texts_that_postgresql_refuses_are_refused() {
        for text in ["", "/", "0", "0/", "/0", "0/123456789", "0/-1", "0/+1", "0/ 1", "0/1/2", "0x1/2"] {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
    }

    #[test]
    fn alignment_goes_up_to_the_next_multiple_of_eight() {
        assert_eq!(Lsn(0).max_align(), Lsn(0));
        assert_eq!(Lsn(1).max_align(), Lsn(8));
        assert_eq!(Lsn(8).max_align(), Lsn(8));
    }
}
