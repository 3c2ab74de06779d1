"""The HTTP side: routes in OpenAI's shapes, their errors and limits, records before answers, and the page."""
