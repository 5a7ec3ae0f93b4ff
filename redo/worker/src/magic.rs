//! What PostgreSQL asks a library before it loads it (`PG_MODULE_MAGIC`, fmgr.h).

use pgrx_pg_sys::{
    FLOAT8PASSBYVAL, FUNC_MAX_ARGS, INDEX_MAX_KEYS, NAMEDATALEN, PG_VERSION_NUM, Pg_magic_struct,
};

const fn abi_extra() -> [core::ffi::c_char; 32] {
    let mut out = [0; 32];
    let name = b"PostgreSQL";
    let mut index = 0;
    while index < name.len() {
        out[index] = name[index] as core::ffi::c_char;
        index += 1;
    }
    out
}

static MAGIC: Pg_magic_struct = Pg_magic_struct {
    len: size_of::<Pg_magic_struct>() as i32,
    version: (PG_VERSION_NUM / 100) as i32,
    funcmaxargs: FUNC_MAX_ARGS as i32,
    indexmaxkeys: INDEX_MAX_KEYS as i32,
    namedatalen: NAMEDATALEN as i32,
    float8byval: FLOAT8PASSBYVAL as i32,
    abi_extra: abi_extra(),
};

/// `PG_MAGIC_FUNCTION_NAME`
#[unsafe(no_mangle)]
pub(crate) extern "C" fn Pg_magic_func() -> *const Pg_magic_struct {
    &raw const MAGIC
}
