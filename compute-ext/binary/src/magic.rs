//! What PostgreSQL asks a library before it loads it.

/// `PG_MODULE_MAGIC` (fmgr.h), by the bindings of the given path. pgrx's own lacks a field that minor releases have added.
#[macro_export]
macro_rules! module_magic {
    ($pg:path) => {
        mod magic {
            use $pg as pg;

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

            static MAGIC: pg::Pg_magic_struct = pg::Pg_magic_struct {
                len: size_of::<pg::Pg_magic_struct>() as i32,
                version: (pg::PG_VERSION_NUM / 100) as i32,
                funcmaxargs: pg::FUNC_MAX_ARGS as i32,
                indexmaxkeys: pg::INDEX_MAX_KEYS as i32,
                namedatalen: pg::NAMEDATALEN as i32,
                float8byval: pg::FLOAT8PASSBYVAL as i32,
                abi_extra: abi_extra(),
            };

            /// `PG_MAGIC_FUNCTION_NAME`
            #[unsafe(no_mangle)]
            pub(crate) extern "C" fn Pg_magic_func() -> *const pg::Pg_magic_struct {
                &raw const MAGIC
            }
        }
    };
}
