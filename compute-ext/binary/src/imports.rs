//! The slots by which the executable calls functions of shared libraries (its global offset table).

use std::ffi::{CStr, c_char, c_void};

/// An entry of the dynamic section (`Elf64_Dyn`, elf.h).
#[repr(C)]
struct Entry {
    tag: i64,
    value: u64,
}

/// `Elf64_Rela`, elf.h.
#[repr(C)]
struct Relocation {
    offset: u64,
    info: u64,
    addend: i64,
}

/// `Elf64_Sym`, elf.h.
#[repr(C)]
struct Symbol {
    name: u32,
    info: u8,
    other: u8,
    section: u16,
    value: u64,
    size: u64,
}

// Tags of the dynamic section (elf.h).
const DT_NULL: i64 = 0;
const DT_PLTRELSZ: i64 = 2;
const DT_STRTAB: i64 = 5;
const DT_SYMTAB: i64 = 6;
const DT_RELA: i64 = 7;
const DT_RELASZ: i64 = 8;
const DT_JMPREL: i64 = 23;

/// Relocations whose place holds a function's address: `GLOB_DAT` and `JUMP_SLOT`.
#[cfg(target_arch = "x86_64")]
const ADDRESSES: [u64; 2] = [6, 7];
#[cfg(target_arch = "aarch64")]
const ADDRESSES: [u64; 2] = [1025, 1026];

/// The slot by which the executable calls a function.
#[derive(Debug)]
pub struct Import {
    place: *mut *const c_void,
}

impl Import {
    /// Finds the executable's only slot of a function.
    ///
    /// # Errors
    /// There is none, or more than one, or it is not where a stock server has it.
    pub fn find(name: &CStr) -> Result<Import, String> {
        let executable = crate::executable()?;
        // SAFETY: the dynamic section of a loaded executable describes what is mapped for as long as it runs.
        let slots = unsafe { slots(executable.base, executable.dynamic, name) };
        let (from, to) = executable.relro;
        match slots.as_slice() {
            [slot] if (from..to).contains(slot) => Ok(Import { place: *slot as *mut *const c_void }),
            slots => Err(format!(
                "this server has {} places from which it calls {}: it is not a stock PostgreSQL 15",
                slots.len(),
                name.to_string_lossy()
            )),
        }
    }

    /// Lets the executable call another function.
    ///
    /// # Safety
    /// It has the signature of the one that was looked for, and the process has one thread.
    pub unsafe fn replace(self, function: *const c_void) -> Result<(), String> {
        // SAFETY: the place is a slot; the rest is the caller's.
        unsafe { crate::write(self.place, [function]) }
    }
}

unsafe fn slots(base: usize, dynamic: usize, name: &CStr) -> Vec<usize> {
    // SAFETY: the section ends with DT_NULL.
    let entries = unsafe {
        let first = dynamic as *const Entry;
        let count = (0..).take_while(|at| (*first.add(*at)).tag != DT_NULL).count();
        std::slice::from_raw_parts(first, count)
    };
    let value = |tag| entries.iter().find(|entry| entry.tag == tag).map(|entry| entry.value as usize);
    // The C library has made addresses of them, on most platforms.
    let address = |tag| value(tag).map(|value| if value < base { base + value } else { value });
    let (Some(strings), Some(symbols)) = (address(DT_STRTAB), address(DT_SYMTAB)) else { return Vec::new() };
    let tables = [(address(DT_JMPREL), value(DT_PLTRELSZ)), (address(DT_RELA), value(DT_RELASZ))];
    let mut slots = Vec::new();
    for (table, bytes) in tables {
        let (Some(table), Some(bytes)) = (table, bytes) else { continue };
        // SAFETY: the section says where the table lies and how long it is.
        let table = unsafe {
            std::slice::from_raw_parts(table as *const Relocation, bytes / size_of::<Relocation>())
        };
        for relocation in table {
            let (kind, symbol) = (relocation.info & 0xFFFF_FFFF, (relocation.info >> 32) as usize);
            // SAFETY: a relocation refers to a symbol of the table, and a symbol to a string of its.
            let is_it = ADDRESSES.contains(&kind)
                && unsafe {
                    let symbol = &*(symbols as *const Symbol).add(symbol);
                    CStr::from_ptr((strings as *const c_char).add(symbol.name as usize)) == name
                };
            if is_it {
                slots.push(base + relocation.offset as usize);
            }
        }
    }
    slots.sort_unstable();
    slots.dedup();
    slots
}
