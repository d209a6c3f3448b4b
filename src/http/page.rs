//! The page at `/`: three files inside the binary, and what a browser may do with them.

use hyper::header::{self, HeaderValue};
use hyper::{Request, Response};

use super::routes::{Content, tagged};

/// Nothing but what comes from here, and no script or style that is not one of these files: whatever an agent supplies stays text.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

/// A file of the page.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum File {
    /// `/`
    Page,
    /// `/page.css`
    Style,
    /// `/page.js`
    Script,
}

/// The file, or 304 to whoever has it.
pub fn get<B>(request: &Request<B>, file: File) -> Response<Content> {
    let (media_type, text) = match file {
        File::Page => ("text/html; charset=utf-8", include_str!("page/index.html")),
        File::Style => ("text/css; charset=utf-8", include_str!("page/page.css")),
        File::Script => ("text/javascript; charset=utf-8", include_str!("page/page.js")),
    };
    let mut response = tagged(request, media_type, text.to_owned());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}
