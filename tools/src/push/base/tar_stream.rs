//! The tar archives that BASE_BACKUP sends, read as they arrive: a header block and no more is held in memory.
//!
//! PostgreSQL writes plain POSIX `ustar` headers (port/tar.c: `tarCreateHeader`): names of up to 99 bytes, sizes
//! octal or, from 8 GB on, base-256; regular files, directories and symbolic links.

/// Size of a tar block.
const BLOCK: usize = 512;

/// What a member of the archive is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EntryKind {
    /// A regular file of so many bytes.
    File {
        /// In bytes.
        size: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: String,
    },
}

/// A member of the archive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Below the archive's root, without a trailing slash; never absolute and never upwards.
    pub path: String,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits.
    pub mode: u32,
}

/// What the reader meets, in order: an entry, its bytes in pieces (files only), its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event<'a> {
    /// A member begins.
    Begin(Entry),
    /// Bytes of the file that began last.
    Data(&'a [u8]),
    /// The member that began last is complete.
    End,
}

/// Bytes that PostgreSQL would not send.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TarError {
    /// The checksum of a header does not fit.
    #[error(
        "damaged tar header in the backup stream (checksum {stored} instead of {computed}): run zenith_push base again"
    )]
    Checksum {
        /// As the header says.
        stored: u64,
        /// As its bytes give.
        computed: u64,
    },
    /// A field that does not read.
    #[error("tar header with an invalid {0} in the backup stream")]
    Field(&'static str),
    /// A kind of member that PostgreSQL does not send.
    #[error("tar member \"{path}\" of kind {kind:?}, which PostgreSQL does not send")]
    Kind {
        /// The member.
        path: String,
        /// Its type flag.
        kind: char,
    },
    /// A path that leads out of the archive.
    #[error("tar member \"{0}\" leads out of the data directory")]
    Path(String),
    /// Data behind the end mark.
    #[error("data behind the end of a tar archive in the backup stream")]
    BehindEnd,
    /// The archive broke off.
    #[error("the backup stream broke off inside {0}")]
    Cut(String),
}

#[derive(Debug)]
enum State {
    /// Collecting a header.
    Header { held: Vec<u8> },
    /// Inside a file.
    Data { path: String, left: u64, padding: u64 },
    /// Behind a file, up to the next block.
    Padding { left: u64 },
    /// A block of zeros was met: only zeros may follow.
    Ended,
}

/// Reads one archive from pieces of any size.
#[derive(Debug)]
pub struct TarStream {
    state: State,
}

impl Default for TarStream {
    fn default() -> TarStream {
        TarStream::new()
    }
}

impl TarStream {
    /// At the beginning of an archive.
    pub fn new() -> TarStream {
        TarStream { state: State::Header { held: Vec::with_capacity(BLOCK) } }
    }

    /// Takes the next piece; `on_event` is called for everything that it completes.
    pub fn feed<E: From<TarError>>(
        &mut self,
        mut bytes: &[u8],
        mut on_event: impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            bytes = self.step(bytes, &mut on_event)?;
        }
        Ok(())
    }

    /// One step; gives what it left of `bytes`, always less than there was.
    fn step<'a, E: From<TarError>>(
        &mut self,
        bytes: &'a [u8],
        on_event: &mut impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<&'a [u8], E> {
        match &mut self.state {
            State::Header { held } => {
                let (taken, rest) = bytes.split_at((BLOCK - held.len()).min(bytes.len()));
                held.extend_from_slice(taken);
                if held.len() == BLOCK {
                    let block = std::mem::take(held);
                    self.header(&block, on_event)?;
                }
                Ok(rest)
            }
            State::Data { left, padding, .. } => {
                let (taken, rest) = bytes.split_at(at_most(*left, bytes.len()));
                *left -= taken.len() as u64;
                let ended = (*left == 0).then_some(*padding);
                on_event(Event::Data(taken))?;
                if let Some(padding) = ended {
                    on_event(Event::End)?;
                    self.state = behind_data(padding);
                }
                Ok(rest)
            }
            State::Padding { left } => {
                let (taken, rest) = bytes.split_at(at_most(*left, bytes.len()));
                *left -= taken.len() as u64;
                if *left == 0 {
                    self.state = behind_data(0);
                }
                Ok(rest)
            }
            State::Ended if bytes.iter().all(|byte| *byte == 0) => Ok(&[]),
            State::Ended => Err(TarError::BehindEnd.into()),
        }
    }

    fn header<E: From<TarError>>(
        &mut self,
        block: &[u8],
        on_event: &mut impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if block.iter().all(|byte| *byte == 0) {
            self.state = State::Ended;
            return Ok(());
        }
        let entry = parse_header(block)?;
        let (path, size) = match &entry.kind {
            EntryKind::File { size } => (entry.path.clone(), *size),
            _ => (String::new(), 0),
        };
        on_event(Event::Begin(entry))?;
        if size == 0 {
            on_event(Event::End)?;
            self.state = behind_data(0);
        } else {
            let padding = size.wrapping_neg() % BLOCK as u64;
            self.state = State::Data { path, left: size, padding };
        }
        Ok(())
    }

    /// The archive is over; an error unless it ended where one may.
    pub fn finish(self) -> Result<(), TarError> {
        match self.state {
            State::Header { held } if held.is_empty() => Ok(()),
            State::Ended => Ok(()),
            State::Data { path, .. } => Err(TarError::Cut(format!("\"{path}\""))),
            State::Header { .. } | State::Padding { .. } => Err(TarError::Cut("a tar header".to_owned())),
        }
    }
}

fn behind_data(padding: u64) -> State {
    match padding {
        0 => State::Header { held: Vec::with_capacity(BLOCK) },
        left => State::Padding { left },
    }
}

fn at_most(left: u64, have: usize) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(have)
}

/// Field offsets: `TarHeader` in pgtar.h.
fn parse_header(block: &[u8]) -> Result<Entry, TarError> {
    let field = |from: usize, to: usize| block.get(from..to).unwrap_or_default();
    let stored = number(field(148, 156)).ok_or(TarError::Field("checksum"))?;
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    let computed = sum(field(0, 148)) + 8 * u64::from(b' ') + sum(field(156, BLOCK));
    if stored != computed {
        return Err(TarError::Checksum { stored, computed });
    }
    let name = text(field(0, 100)).ok_or(TarError::Field("name"))?;
    let prefix = text(field(345, 500)).ok_or(TarError::Field("prefix"))?;
    let whole = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
    let path = relative(&whole)?;
    let mode =
        number(field(100, 108)).and_then(|mode| u32::try_from(mode).ok()).ok_or(TarError::Field("mode"))?;
    let size = number(field(124, 136)).ok_or(TarError::Field("size"))?;
    let kind = match block.get(156).copied().unwrap_or_default() {
        b'0' | 0 => EntryKind::File { size },
        b'5' => EntryKind::Directory,
        b'2' => {
            let target = text(field(157, 257)).filter(|target| !target.is_empty());
            EntryKind::Symlink { target: target.ok_or(TarError::Field("link target"))?.to_owned() }
        }
        other => return Err(TarError::Kind { path, kind: char::from(other) }),
    };
    Ok(Entry { path, kind, mode: mode & 0o7777 })
}

/// Octal digits up to a space or NUL, or base-256 behind a first byte of 0x80 (`read_tar_number`).
fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if *first == 0x80 {
        return rest.iter().try_fold(0u64, |sum, byte| Some(sum.checked_mul(256)? + u64::from(*byte)));
    }
    let digits = field.iter().skip_while(|byte| **byte == b' ');
    let digits: Vec<u8> = digits.copied().take_while(|byte| !matches!(*byte, b' ' | 0)).collect();
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |sum, byte| match byte {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

fn text(field: &[u8]) -> Option<&str> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    std::str::from_utf8(field.get(..end)?).ok()
}

/// Without `./` at the front and slashes at the end.
fn relative(path: &str) -> Result<String, TarError> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if path.starts_with('/') || parts.contains(&"..") {
        return Err(TarError::Path(path.to_owned()));
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An archive as the `tar` crate writes it.
    fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, bytes) in members {
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o600);
            if path.ends_with('/') {
                header.set_entry_type(tar::EntryType::Directory);
            }
            header.set_size(bytes.len() as u64);
            builder.append_data(&mut header, path, *bytes).expect("appended");
        }
        builder.into_inner().expect("finished")
    }

    fn read(bytes: &[u8], piece: usize) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
        let mut found: Vec<(Entry, Vec<u8>)> = Vec::new();
        let mut ended = 0;
        let mut stream = TarStream::new();
        for piece in bytes.chunks(piece) {
            stream.feed::<TarError>(piece, |event| {
                match event {
                    Event::Begin(entry) => found.push((entry, Vec::new())),
                    Event::Data(data) => found.last_mut().expect("begun").1.extend_from_slice(data),
                    Event::End => ended += 1,
                }
                Ok(())
            })?;
        }
        stream.finish()?;
        assert_eq!(ended, found.len());
        Ok(found)
    }

    #[test]
    fn members_come_out_whole_however_the_stream_is_cut() {
        let big = vec![7u8; 1300];
        let bytes =
            archive(&[("PG_VERSION", b"15\n"), ("base/", b""), ("base/1/1259", &big), ("empty", b"")]);
        for piece in [1, 7, 511, 512, 513, 100_000] {
            let found = read(&bytes, piece).expect("valid");
            let paths: Vec<&str> = found.iter().map(|(entry, _)| entry.path.as_str()).collect();
            assert_eq!(paths, ["PG_VERSION", "base", "base/1/1259", "empty"], "pieces of {piece}");
            assert_eq!(found[2].1, big);
            assert_eq!(found[1].0.kind, EntryKind::Directory);
        }
    }

    #[test]
    fn an_archive_that_breaks_off_is_an_error() {
        let bytes = archive(&[("a", &[1; 700])]);
        for cut in [1, 511, 513, 1000, 512 + 700] {
            assert!(matches!(read(&bytes[..cut], 64), Err(TarError::Cut(_))), "cut at {cut}");
        }
    }

    #[test]
    fn a_changed_header_is_noticed() {
        let mut bytes = archive(&[("base/1/1259", b"x")]);
        bytes[5] ^= 1;
        assert!(matches!(read(&bytes, 512), Err(TarError::Checksum { .. })));
    }

    #[test]
    fn paths_that_lead_out_and_unknown_kinds_are_refused() {
        assert!(matches!(relative("/etc/passwd"), Err(TarError::Path(_))));
        assert!(matches!(relative("base/../../x"), Err(TarError::Path(_))));
        assert_eq!(relative("./pg_wal/"), Ok("pg_wal".to_owned()));
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Fifo);
        header.set_path("pipe").expect("path");
        header.set_size(0);
        header.set_mode(0);
        header.set_cksum();
        assert!(matches!(parse_header(header.as_bytes()), Err(TarError::Kind { .. })));
    }

    #[test]
    fn sizes_from_8_gb_on_are_read() {
        let mut field = [0u8; 12];
        field[0] = 0x80;
        field[7..12].copy_from_slice(&[2, 0, 0, 0, 1]);
        assert_eq!(number(&field), Some(8_589_934_593));
        assert_eq!(number(&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic_and_never_pass_for_more_than_was_sent(
            bytes in prop::collection::vec(any::<u8>(), 0..2048), piece in 1usize..700,
        ) {
            if let Ok(found) = read(&bytes, piece) {
                let sum: usize = found.iter().map(|(_, data)| data.len()).sum();
                prop_assert!(sum <= bytes.len());
            }
        }

        #[test]
        fn a_damaged_archive_never_panics(at in 0usize..2048, value in any::<u8>(), piece in 1usize..700) {
            let mut bytes = archive(&[("base/1/1259", &[1; 600]), ("b", b"y")]);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            let _ = read(&bytes, piece);
        }
    }
}
