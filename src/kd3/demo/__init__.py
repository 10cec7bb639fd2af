"""The data of `kd3 demo`: real digits play the lost data, rendered pictures play the crawl."""
