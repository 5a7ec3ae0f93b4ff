//! `zenith/compute.json`: what a directory is of, and how to reach its pages.

use serde::{Deserialize, Serialize};
use zenith_pgformat::Lsn;

/// The format that this release writes and reads.
const FORMAT: u32 = 1;

/// What a lazy compute's directory is of. Who does not understand all of it must not run it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compute {
    format: u32,
    /// The timeline that its pages are read from: 32 hexadecimal digits.
    pub timeline: String,
    /// As of which LSN.
    pub lsn: Lsn,
    /// As in pg_control; as text, because JSON's numbers are too short for it.
    pub system_identifier: String,
    /// The server that it was made for, such as 150018: the extension depends on the minor release.
    pub server_version_num: u32,
    /// Who serves its pages.
    pub reader: Reader,
}

/// Who serves a compute's pages.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Reader {
    /// A page service of its own, which the server starts as `program arguments… -k zenith -p 1 --postmaster .`.
    Private {
        /// An absolute path.
        program: String,
        /// Which store.
        arguments: Vec<String>,
    },
    /// One that serves others, too.
    Shared {
        /// A socket's directory, if it begins with `/`.
        host: String,
        /// Its port.
        port: u16,
    },
}

/// A file that does not say what a directory is of.
#[derive(Debug, thiserror::Error)]
pub enum BadCompute {
    /// Not what a restorer wrote.
    #[error("zenith/compute.json is damaged ({0}): restore the directory anew")]
    Damaged(String),
    /// Written by a release that knows more.
    #[error("zenith/compute.json has format {0}; this program knows {FORMAT}: use a newer release of Zenith")]
    Newer(u64),
}

impl Compute {
    /// Of the newest format.
    pub fn new(
        timeline: String,
        lsn: Lsn,
        system_identifier: u64,
        server_version_num: u32,
        reader: Reader,
    ) -> Compute {
        let system_identifier = system_identifier.to_string();
        Compute { format: FORMAT, timeline, lsn, system_identifier, server_version_num, reader }
    }

    /// The file's content.
    pub fn encode(&self) -> Vec<u8> {
        // Strings, numbers and lists of them: nothing that JSON has not.
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// From the file's content.
    pub fn decode(bytes: &[u8]) -> Result<Compute, BadCompute> {
        let damaged = |error: serde_json::Error| BadCompute::Damaged(error.to_string());
        let value: serde_json::Value = serde_json::from_slice(bytes).map_err(damaged)?;
        match value.get("format").and_then(serde_json::Value::as_u64) {
            Some(format) if format > u64::from(FORMAT) => return Err(BadCompute::Newer(format)),
            Some(format) if format == u64::from(FORMAT) => {}
            _ => return Err(BadCompute::Damaged("it has no format".to_owned())),
        }
        let compute: Compute = serde_json::from_value(value).map_err(damaged)?;
        let is_id =
            compute.timeline.len() == 32 && compute.timeline.bytes().all(|digit| digit.is_ascii_hexdigit());
        if !is_id {
            return Err(BadCompute::Damaged("\"timeline\" is no timeline's id".to_owned()));
        }
        match &compute.reader {
            Reader::Private { program, .. } if !program.starts_with('/') => {
                Err(BadCompute::Damaged("\"program\" is no absolute path".to_owned()))
            }
            _ => Ok(compute),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compute() -> Compute {
        let arguments = vec!["--store".to_owned(), "file:///srv/zenith".to_owned()];
        let reader = Reader::Private { program: "/usr/bin/zenith_reader".to_owned(), arguments };
        Compute::new(
            "0195c1f87e5d7c9a8a4b3f1b6c0d2e11".to_owned(),
            Lsn(0x300_0148),
            u64::MAX,
            150_018,
            reader,
        )
    }

    #[test]
    fn what_is_written_is_read_back() {
        let shared = Reader::Shared { host: "/run/zenith".to_owned(), port: 5432 };
        for compute in [compute(), Compute { reader: shared, ..compute() }] {
            assert_eq!(Compute::decode(&compute.encode()).expect("whole"), compute);
        }
    }

    #[test]
    fn the_file_is_that_of_the_document() {
        let text = String::from_utf8(compute().encode()).expect("text");
        for field in [
            "\"format\": 1",
            "\"lsn\": \"0/3000148\"",
            "\"system_identifier\": \"18446744073709551615\"",
            "\"server_version_num\": 150018",
            "\"private\": {",
        ] {
            assert!(text.contains(field), "{field} in {text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let text = String::from_utf8(compute().encode()).expect("text");
        let change = |from: &str, to: &str| Compute::decode(text.replace(from, to).as_bytes());
        assert!(matches!(change("\"format\": 1", "\"format\": 2"), Err(BadCompute::Newer(2))));
        assert!(change("\"lsn\"", "\"later\"").is_err());
        assert!(change("0195c1f8", "../../..").is_err());
        assert!(change("/usr/bin/", "").is_err());
        assert!(change("{\n  \"format\"", "{\n  \"more\": 1,\n  \"format\"").is_err());
        assert!(Compute::decode(&text.as_bytes()[..text.len() / 2]).is_err());
    }
}
