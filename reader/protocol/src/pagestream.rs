//! The messages of a page stream: each is the content of one `CopyData` (docs/page-service.md). Numbers are big-endian, as
//! everywhere in PostgreSQL's protocol.

use bytes::{BufMut, Bytes, BytesMut};
use zenith_pgformat::{BLCKSZ, Fork, Lsn, RelNode};

/// Blocks that one request may ask for: 256 KB.
pub const MAX_BLOCKS: u16 = 32;

const PAGES: u8 = 1;
const RELATION: u8 = 2;
const PAGES_ANSWER: u8 = 101;
const RELATION_ANSWER: u8 = 102;
const ERROR: u8 = 103;

/// Something is asked, as of an LSN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Chosen by the client; its answer carries it.
    pub id: u64,
    /// As of which LSN.
    pub lsn: Lsn,
    /// What.
    pub wanted: Wanted,
}

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// Blocks that follow one another, 1 to [`MAX_BLOCKS`].
    Pages {
        /// The relation.
        node: RelNode,
        /// The fork.
        fork: Fork,
        /// The first block.
        block: u32,
        /// How many.
        count: u16,
    },
    /// Whether a fork exists, and its length.
    Relation {
        /// The relation.
        node: RelNode,
        /// The fork.
        fork: Fork,
    },
}

/// What is answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The pages, 8192 bytes each, fit to be given to PostgreSQL.
    Pages(Vec<Bytes>),
    /// The fork's length in blocks; `None`: it does not exist.
    Relation(Option<u32>),
    /// There is none.
    Error {
        /// What the client should do.
        code: Code,
        /// Names the object or LSN and the remedy.
        message: String,
    },
}

/// What a client should make of an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Code {
    /// Try again, after a pause.
    Retry = 1,
    /// The LSN lies past what is sliced: it may come.
    NotYet = 2,
    /// The LSN, timeline or relation is not there, and will not be.
    Gone = 3,
    /// What is stored is damaged (I9). Others can still be read.
    Corrupt = 4,
}

impl Code {
    const ALL: [Code; 4] = [Code::Retry, Code::NotYet, Code::Gone, Code::Corrupt];
}

/// Bytes that are no message of a page stream.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a message of a page stream: {0}")]
pub struct Malformed(&'static str);

impl Request {
    /// From a message's content.
    pub fn decode(bytes: &[u8]) -> Result<Request, Malformed> {
        let mut fields = Fields(bytes);
        let (kind, id, lsn) = (fields.u8()?, fields.u64()?, Lsn(fields.u64()?));
        let node = RelNode { spc: fields.u32()?, db: fields.u32()?, rel: fields.u32()? };
        let fork = Fork::from_number(fields.u8()?).ok_or(Malformed("no fork has that number"))?;
        let wanted = match kind {
            PAGES => {
                let (block, count) = (fields.u32()?, fields.u16()?);
                if !(1..=MAX_BLOCKS).contains(&count) {
                    return Err(Malformed("it asks for no block, or for more than 32"));
                }
                Wanted::Pages { node, fork, block, count }
            }
            RELATION => Wanted::Relation { node, fork },
            _ => return Err(Malformed("no request has that kind")),
        };
        fields.end()?;
        Ok(Request { id, lsn, wanted })
    }

    /// A message's content.
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(40);
        let (kind, node, fork) = match self.wanted {
            Wanted::Pages { node, fork, .. } => (PAGES, node, fork),
            Wanted::Relation { node, fork } => (RELATION, node, fork),
        };
        bytes.put_u8(kind);
        bytes.put_u64(self.id);
        bytes.put_u64(self.lsn.0);
        for number in [node.spc, node.db, node.rel] {
            bytes.put_u32(number);
        }
        bytes.put_u8(fork as u8);
        if let Wanted::Pages { block, count, .. } = self.wanted {
            bytes.put_u32(block);
            bytes.put_u16(count);
        }
        bytes.freeze()
    }

    /// How many blocks of memory its answer may take.
    pub fn blocks(&self) -> u32 {
        match self.wanted {
            Wanted::Pages { count, .. } => u32::from(count),
            Wanted::Relation { .. } => 1,
        }
    }
}

impl Answer {
    /// A message's content.
    pub fn encode(&self, id: u64) -> Bytes {
        let mut bytes = BytesMut::new();
        let head = |bytes: &mut BytesMut, kind| {
            bytes.put_u8(kind);
            bytes.put_u64(id);
        };
        match self {
            Answer::Pages(pages) => {
                bytes.reserve(11 + pages.len() * BLCKSZ);
                head(&mut bytes, PAGES_ANSWER);
                bytes.put_u16(u16::try_from(pages.len()).unwrap_or(u16::MAX));
                pages.iter().for_each(|page| bytes.put_slice(page));
            }
            Answer::Relation(blocks) => {
                head(&mut bytes, RELATION_ANSWER);
                bytes.put_u8(u8::from(blocks.is_some()));
                bytes.put_u32(blocks.unwrap_or(0));
            }
            Answer::Error { code, message } => {
                head(&mut bytes, ERROR);
                bytes.put_u8(*code as u8);
                bytes.put_slice(message.as_bytes());
            }
        }
        bytes.freeze()
    }

    /// From a message's content, with the request's id.
    pub fn decode(content: &Bytes) -> Result<(u64, Answer), Malformed> {
        let mut fields = Fields(content);
        let (kind, id) = (fields.u8()?, fields.u64()?);
        let answer = match kind {
            PAGES_ANSWER => {
                let count = usize::from(fields.u16()?);
                if count > usize::from(MAX_BLOCKS) || fields.0.len() != count * BLCKSZ {
                    return Err(Malformed("its pages are not whole"));
                }
                let page = |number: usize| content.slice_ref(&fields.0[number * BLCKSZ..][..BLCKSZ]);
                return Ok((id, Answer::Pages((0..count).map(page).collect())));
            }
            RELATION_ANSWER => {
                let (exists, blocks) = (fields.u8()?, fields.u32()?);
                fields.end()?;
                Answer::Relation((exists != 0).then_some(blocks))
            }
            ERROR => {
                let number = fields.u8()?;
                let code = Code::ALL.into_iter().find(|code| *code as u8 == number);
                let code = code.ok_or(Malformed("no error has that code"))?;
                Answer::Error { code, message: String::from_utf8_lossy(fields.0).into_owned() }
            }
            _ => return Err(Malformed("no answer has that kind")),
        };
        Ok((id, answer))
    }
}

/// What is left of a message.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed("it is too short"))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.take().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.take().map(u64::from_be_bytes)
    }

    fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed("it is too long")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NODE: RelNode = RelNode { spc: 1663, db: 5, rel: 16384 };

    #[test]
    fn the_bytes_are_those_of_the_document() {
        let wanted = Wanted::Pages { node: NODE, fork: Fork::Main, block: 7, count: 2 };
        let request = Request { id: 3, lsn: Lsn(0x1_0000_0148), wanted };
        let bytes = [
            &[1][..],
            &3u64.to_be_bytes(),
            &[0, 0, 0, 1, 0, 0, 1, 0x48],
            &[0, 0, 6, 0x7F, 0, 0, 0, 5, 0, 0, 0x40, 0, 0],
            &[0, 0, 0, 7, 0, 2],
        ];
        assert_eq!(request.encode(), bytes.concat());
        let answer = Answer::Error { code: Code::NotYet, message: "soon".to_owned() };
        assert_eq!(answer.encode(3), [&[103][..], &3u64.to_be_bytes(), &[2], b"soon"].concat());
        assert_eq!(Answer::Relation(Some(9)).encode(1)[9..], [1, 0, 0, 0, 9]);
    }

    #[test]
    fn what_is_written_is_read_back_and_what_is_cut_or_longer_is_refused() {
        let requests = [
            Wanted::Pages { node: NODE, fork: Fork::Init, block: u32::MAX, count: MAX_BLOCKS },
            Wanted::Relation { node: NODE, fork: Fork::Vm },
        ];
        for wanted in requests {
            let request = Request { id: u64::MAX, lsn: Lsn(1), wanted };
            let bytes = request.encode();
            assert_eq!(Request::decode(&bytes), Ok(request));
            assert!((0..bytes.len()).all(|cut| Request::decode(&bytes[..cut]).is_err()));
            assert!(Request::decode(&[&bytes[..], &[0]].concat()).is_err());
        }
        let page = Bytes::from(vec![7; BLCKSZ]);
        let answers = [
            Answer::Pages(vec![page.clone(), page]),
            Answer::Relation(None),
            Answer::Relation(Some(0)),
            Answer::Error { code: Code::Corrupt, message: "x".to_owned() },
        ];
        for answer in answers {
            assert_eq!(Answer::decode(&answer.encode(5)), Ok((5, answer)));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), kind in 0u8..=104) {
            let bytes = [&[kind][..], &bytes].concat();
            if let Ok(request) = Request::decode(&bytes) {
                prop_assert_eq!(&request.encode()[..], &bytes[..]);
            }
            let _ = Answer::decode(&bytes.into());
        }
    }

    #[test]
    fn no_block_and_too_many_are_refused() {
        for count in [0, MAX_BLOCKS + 1, u16::MAX] {
            let wanted = Wanted::Pages { node: NODE, fork: Fork::Main, block: 0, count };
            assert!(Request::decode(&Request { id: 1, lsn: Lsn(1), wanted }.encode()).is_err());
        }
    }
}
