//! What every store around another one passes on as it is: written once.

/// `impl ObjectStore` for a store around another one, which is its field `$inner`: what is named after `forward` is
/// passed on, and what follows is the store's own. `list(noted)` calls `self.noted()` first. Name all ten methods: a
/// default of the trait would go round the store inside (for stores of this crate clippy notices).
///
/// Where it is used, `async_trait`, `bytes`, `futures` and `object_store` must be dependencies.
///
/// ```
/// use object_store::{ObjectStore, PutOptions, PutPayload, PutResult, Result, path::Path};
/// use std::sync::Arc;
///
/// #[derive(Debug)]
/// struct ReadOnly {
///     inner: Arc<dyn ObjectStore>,
/// }
///
/// impl std::fmt::Display for ReadOnly {
///     fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
///         write!(f, "{}, which is only read", self.inner)
///     }
/// }
///
/// zenith_store::forward_object_store! {
///     impl ObjectStore for ReadOnly by inner {
///         forward put_multipart_opts, get_opts, get_ranges, delete_stream, list, list_with_offset,
///             list_with_delimiter, copy_opts, rename_opts;
///
///         async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
///             Err(object_store::Error::NotImplemented {
///                 operation: "put".to_owned(),
///                 implementer: self.to_string(),
///             })
///         }
///     }
/// }
/// ```
#[macro_export]
macro_rules! forward_object_store {
    (impl ObjectStore for $store:ident by $inner:ident {
        forward $($method:ident $(($first:ident))?),+ $(,)?;
        $($own:tt)*
    }) => {
        $crate::forward_object_store!(@ $store, $inner, [$(($method $($first)?))+] { $($own)* });
    };
    (@ $store:ident, $inner:ident, [] { $($done:tt)* }) => {
        #[async_trait::async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl object_store::ObjectStore for $store { $($done)* }
    };
    (@ $store:ident, $inner:ident, [(put_opts $($first:ident)?) $($rest:tt)*] { $($done:tt)* }) => {
        $crate::forward_object_store!(@ $store, $inner, [$($rest)*] {
            $($done)*
            async fn put_opts(
                &self,
                location: &object_store::path::Path,
                payload: object_store::PutPayload,
                opts: object_store::PutOptions,
            ) -> object_store::Result<object_store::PutResult> {
                $(self.$first();)?
                self.$inner.put_opts(location, payload, opts).await
            }
        });
    };
    (@ $store:ident, $inner:ident, [(put_multipart_opts $($first:ident)?) $($rest:tt)*] { $($done:tt)* }) => {
        $crate::forward_object_store!(@ $store, $inner, [$($rest)*] {
            $($done)*
            async fn put_multipart_opts(
                &self,
                location: &object_store::path::Path,
                opts: object_store::PutMultipartOptions,
            ) -> object_store::Result<Box<dyn object_store::MultipartUpload>> {
                $(self.$first();)?
                self.$inner.put_multipart_opts(location, opts).await
            }
        });
    };
    (@ $store:ident, $inner:ident, [(get_opts $($first:ident)?) $($rest:tt)*] { $($done:tt)* }) => {
        $crate::forward_object_store!(@ $store, $inner, [$($rest)*] {
            $($done)*
            async fn get_opts(
                &self,
                location: &object_store::path::Path,
                options: object_store::GetOptions,
            ) -> object_store::Result<object_store::GetResult> {
                $(self.$first();)?
                self.$inner.get_opts(location, options).await
            }
        });
    };
    (@ $store:ident, $inner:ident, [(get_ranges $($first:ident)?) $($rest:tt)*] { $($done:tt)* }) => {
        $crate::forward_object_store!(@ $store, $inner, [$($rest)*] {
            $($done)*
            async fn get_ranges(
                &self,
                location: &object_store::path::Path,
                ranges: &[std::ops::Range<u64>],
            ) -> object_store::Result<Vec<bytes::Bytes>> {
                $(self.$first();)?
                self.$inner.get_ranges(location, ranges).await
            }
        });
    };
    (@ $store:ident, $inner:ident, [(delete_stream $($first:ident)?) $($rest:tt)*] { $($done:tt)* }) => {
        $crate::forward_object_store!(@ $store, $inner, [$($rest)*] {
            $($done)*
            fn delete_stream(
                &self,
                locations: futures::stream::BoxStream<'static, object_store::Result<object_store::path::Path>>,
            ) -> futures::stream::BoxStream<'static, object_store::Result<object_store::path::Path>> {
                $(self.$first();)?
                self.$inner.delete_stream(locations)
            }
        });
    };
    (@ $store:ident, $inner:ident, [(list $($first:ident)?) $($rest:tt)*] { $($done:tt)* }) => {
        $crate::forward_object_store!(@ $store, $inner, [$($rest)*] {
            $($done)*
            fn list(
                &self,
                prefix: Option<&object_store::path::Path>,
            ) -> futures::stream::BoxStream<'static, object_store::Result<object_store::ObjectMeta>> {
                $(self.$first();)?
                self.$inner.list(prefix)
            }
        });
    };
    (@ $store:ident, $inner:ident, [(list_with_offset $($first:ident)?) $($rest:tt)*] { $($done:tt)* }) => {
        $crate::forward_object_store!(@ $store, $inner, [$($rest)*] {
            $($done)*
            fn list_with_offset(
                &self,
                prefix: Option<&object_store::path::Path>,
                offset: &object_store::path::Path,
            ) -> futures::stream::BoxStream<'static, object_store::Result<object_store::ObjectMeta>> {
                $(self.$first();)?
                self.$inner.list_with_offset(prefix, offset)
            }
        });
    };
    (@ $store:ident, $inner:ident, [(list_with_delimiter $($first:ident)?) $($rest:tt)*] { $($done:tt)* }) => {
        $crate::forward_object_store!(@ $store, $inner, [$($rest)*] {
            $($done)*
            async fn list_with_delimiter(
                &self,
                prefix: Option<&object_store::path::Path>,
            ) -> object_store::Result<object_store::ListResult> {
                $(self.$first();)?
                self.$inner.list_with_delimiter(prefix).await
            }
        });
    };
    (@ $store:ident, $inner:ident, [(copy_opts $($first:ident)?) $($rest:tt)*] { $($done:tt)* }) => {
        $crate::forward_object_store!(@ $store, $inner, [$($rest)*] {
            $($done)*
            async fn copy_opts(
                &self,
                from: &object_store::path::Path,
                to: &object_store::path::Path,
                options: object_store::CopyOptions,
            ) -> object_store::Result<()> {
                $(self.$first();)?
                self.$inner.copy_opts(from, to, options).await
            }
        });
    };
    (@ $store:ident, $inner:ident, [(rename_opts $($first:ident)?) $($rest:tt)*] { $($done:tt)* }) => {
        $crate::forward_object_store!(@ $store, $inner, [$($rest)*] {
            $($done)*
            async fn rename_opts(
                &self,
                from: &object_store::path::Path,
                to: &object_store::path::Path,
                options: object_store::RenameOptions,
            ) -> object_store::Result<()> {
                $(self.$first();)?
                self.$inner.rename_opts(from, to, options).await
            }
        });
    };
}
