-- A POST with a body of 64 KiB for each request of wrk.
wrk.method = "POST"
wrk.body = string.rep("x", 64 * 1024)
